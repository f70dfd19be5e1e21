"""The arguments of the PyTorch packages' constructors, and what becomes of each.

Every argument of a constructor has a row: it is `READ`, it has `NO_EFFECT`, or it is read at some
values `Only`, and at others refused. The value of an argument in a live module, a stored
configuration or on the command line goes through `check`. An argument without a row is of another
release of the package and is refused too; a test compares the rows with the signatures.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from t2i_jax import values
from t2i_jax.errors import UserError


class Only:
    """The values of an argument with which the package computes what the network here computes.

    Attributes:
      values: they, of which the first is named in a refusal; a tuple is one value.
    """

    def __init__(self, *values: Any):
        self.values = values

    def __contains__(self, value: Any) -> bool:
        """Whether a value is one of these, or a list of them; 1.0 is 1, and no number is True."""
        if isinstance(value, (tuple, list)):
            return self._has(tuple(value)) or (len(value) > 0 and all(map(self._has, value)))
        return self._has(value)

    def _has(self, value):
        return any(
            type(value) in _KIN.get(type(own), (type(own),)) and value == own for own in self.values
        )


_NUMBERS = (int, float)
_KIN: Mapping[type, tuple[type, ...]] = {
    bool: (bool,),
    int: _NUMBERS,
    float: _NUMBERS,
    str: (str,),
    type(None): (type(None),),
}

READ = "read"  # from the weights, or into a field of the network or the task
NO_EFFECT = "no effect"  # on what the package computes, in sampling or in a loss, in one process
Rows = Mapping[str, "str | Only"]

UNET: Rows = {
    **dict.fromkeys(
        """dim text_embed_dim num_resnet_blocks cond_dim num_time_tokens learned_sinu_pos_emb_dim
        dim_mults cond_images_channels channels channels_out attn_dim_head attn_heads ff_mult
        lowres_cond layer_attns layer_attns_depth layer_mid_attns_depth attend_at_middle
        layer_cross_attns use_linear_attn use_linear_cross_attn cond_on_text max_text_len init_dim
        init_conv_kernel_size init_cross_embed init_cross_embed_kernel_sizes cross_embed_downsample
        cross_embed_downsample_kernel_sizes attn_pool_text attn_pool_num_latents memory_efficient
        init_conv_to_final_conv_residual use_global_context_attn scale_skip_connection
        final_resnet_block final_conv_kernel_size self_cond resize_mode combine_upsample_fmaps
        pixel_shuffle_upsample""".split(),
        READ,
    ),
    # accepted there and never used
    **dict.fromkeys(
        "num_image_tokens out_dim layer_attns_add_text_cond dropout".split(), NO_EFFECT
    ),
}
# A U-Net within a cascade has these as the cascade says, whatever it was made with.
SET_BY_THE_CASCADE = ("lowres_cond", "text_embed_dim", "channels", "channels_out", "cond_on_text")

_CASCADE: Rows = {
    **dict.fromkeys(
        """unets image_sizes text_encoder_name text_embed_dim channels cond_drop_prob
        random_crop_sizes lowres_noise_schedule lowres_sample_noise_level
        per_sample_random_aug_noise_level condition_on_text dynamic_thresholding
        dynamic_thresholding_percentile only_train_unet_number resize_mode""".split(),
        READ,
    ),
    # Images of False come in [-1, 1], which is what they are here within the network.
    "auto_normalize_img": NO_EFFECT,
    "temporal_downsample_factor": Only(1),
    "resize_cond_video_frames": NO_EFFECT,  # without a video
}
IMAGEN: Rows = {
    **_CASCADE,
    **dict.fromkeys(
        """timesteps loss_type noise_schedules pred_objectives min_snr_loss_weight
        min_snr_gamma""".split(),
        READ,
    ),
}
ELUCIDATED_IMAGEN: Rows = {
    **_CASCADE,
    **dict.fromkeys(
        """num_sample_steps sigma_min sigma_max sigma_data rho P_mean P_std S_churn S_tmin S_tmax
        S_noise""".split(),
        READ,
    ),
}
IN_A_CONFIG: Rows = {"video": Only(False), "imagen_type": Only("original", "elucidated", None)}

DIFFUSION_PRIOR_NETWORK: Rows = dict.fromkeys(
    """dim num_timesteps num_time_embeds num_image_embeds num_text_embeds max_text_len self_cond
    depth dim_head heads ff_mult norm_in norm_out attn_dropout ff_dropout final_proj normformer
    rotary_emb""".split(),
    READ,
)

DIFFUSION_PRIOR: Rows = {
    **dict.fromkeys(
        """net clip timesteps beta_schedule sample_timesteps cond_drop_prob text_cond_drop_prob
        image_cond_drop_prob loss_type predict_x_start predict_v condition_on_text_encodings
        sampling_clamp_l2norm sampling_final_clamp_l2norm training_clamp_l2norm
        init_image_embed_l2norm image_embed_scale image_embed_dim""".split(),
        READ,
    ),
    # those of CLIP, where there is one, and of nothing where there is none
    "image_size": NO_EFFECT,
    "image_channels": NO_EFFECT,
    "clip_adapter_overrides": Only(None),
}

# A checkpoint of the trainer does not depend on them, but for the averages of `use_ema`.
IMAGEN_TRAINER: Rows = {
    "imagen": READ,
    "imagen_checkpoint_path": NO_EFFECT,
    "use_ema": READ,
    **dict.fromkeys(
        """lr eps beta1 beta2 max_grad_norm group_wd_params warmup_steps cosine_decay_max_steps
        only_train_unet_number fp16 precision split_batches dl_tuple_output_keywords_names verbose
        split_valid_fraction split_valid_from_train split_random_seed checkpoint_path
        checkpoint_every checkpoint_fs fs_kwargs max_checkpoints_keep kwargs""".split(),
        NO_EFFECT,
    ),
}

VIT_VQGAN_VAE: Rows = {
    **dict.fromkeys(
        """dim image_size channels layers l2_recon_loss use_hinge_loss lookup_free_quantization
        codebook_size vq_kwargs lfq_kwargs use_vgg_and_gan discr_layers""".split(),
        READ,
    ),
    "vgg": NO_EFFECT,  # a part of the task here: parts={"perceptual": FILE}
    "kwargs": READ,  # those of `VIT_ENC_DEC` after "encdec_", and of the quantiser after "vq_"
}
VIT_ENC_DEC: Rows = dict.fromkeys(
    "dim image_size channels layers patch_size dim_head heads ff_mult".split(), READ
)

# of diffusers
VQ_MODEL: Rows = {
    **dict.fromkeys(
        """in_channels out_channels down_block_types up_block_types block_out_channels
        layers_per_block latent_channels num_vq_embeddings norm_num_groups vq_embed_dim
        mid_block_add_attention""".split(),
        READ,
    ),
    "act_fn": Only("silu", "swish"),
    "norm_type": Only("group"),
    "sample_size": NO_EFFECT,  # it is convolutional
    # of the latents of a diffusion model
    **dict.fromkeys("scaling_factor lookup_from_codebook force_upcast".split(), NO_EFFECT),
}

LFQ: Rows = {
    **dict.fromkeys(
        """dim codebook_size entropy_loss_weight commitment_loss_weight diversity_gamma""".split(),
        READ,
    ),
    "straight_through_activation": Only("Identity"),
    "num_codebooks": Only(1),
    "keep_num_codebooks_dim": Only(False),
    "codebook_scale": Only(1.0),
    "frac_per_sample_entropy": Only(1.0),
    "has_projections": Only(None),  # linear maps where the widths differ
    "projection_has_bias": Only(True),
    "soft_clamp_input_value": Only(None),
    "cosine_sim_project_in": Only(False),
    "cosine_sim_project_in_scale": NO_EFFECT,  # without the above
    "channel_first": Only(None, True),
    "experimental_softplus_entropy_loss": Only(False),
    "entropy_loss_offset": NO_EFFECT,  # without the above
    "spherical": Only(False),
    "force_quantization_f32": NO_EFFECT,  # in float32
    "orthogonal_rotation": Only(False),
}
VECTOR_QUANTIZE: Rows = {
    **dict.fromkeys(
        "dim codebook_size codebook_dim decay kmeans_init commitment_weight rotation_trick".split(),
        READ,
    ),
    "heads": Only(1),
    "separate_codebook_per_head": Only(False),
    "eps": Only(1e-5),
    "freeze_codebook": Only(False),
    "kmeans_iters": Only(10),
    "sync_kmeans": NO_EFFECT,
    "use_cosine_sim": Only(True),
    "layernorm_after_project_in": Only(False),
    "threshold_ema_dead_code": Only(0),
    "channel_last": NO_EFFECT,  # with feature maps
    "accept_image_fmap": Only(True),
    "accept_3d_fmap": Only(False),
    "commitment_use_cross_entropy_loss": Only(False),
    "orthogonal_reg_weight": Only(0.0),
    "orthogonal_reg_active_codes_only": NO_EFFECT,  # without the above
    "orthogonal_reg_max_codes": NO_EFFECT,
    "codebook_diversity_loss_weight": Only(0.0),
    "codebook_diversity_temperature": NO_EFFECT,  # without the above
    "stochastic_sample_codes": Only(False),
    "sample_codebook_temp": NO_EFFECT,  # without the above
    "straight_through": Only(False),
    "directional_reparam": Only(False),
    "directional_reparam_variance": NO_EFFECT,  # without the above
    "sync_codebook": NO_EFFECT,
    "sync_affine_param": NO_EFFECT,
    "ema_update": Only(True),
    "vq_bridge": Only(None),
    "manual_ema_update": Only(False),
    "learnable_codebook": Only(False),
    "in_place_codebook_optimizer": Only(None),
    "manual_in_place_optimizer_update": NO_EFFECT,  # without the above
    "affine_param": Only(False),
    "affine_param_batch_decay": NO_EFFECT,  # without the above
    "affine_param_codebook_decay": NO_EFFECT,
    "sync_update_v": Only(0.0),
    "return_zeros_for_masked_padding": NO_EFFECT,  # without a mask
    "route_gradients_to_input": Only(True),
}

PARTI: Rows = {
    **dict.fromkeys(
        """dim depth dim_head heads dropout ff_mult vae t5_name text_embed_dim cond_drop_prob
        max_text_len""".split(),
        READ,
    ),
    "vae_image_size": READ,  # the tokens of an image must be those of the tokenizer
    "vae_codebook_size": READ,  # the number of embeddings
    "ignore_index": Only(-1),
}

VQGAN_VAE: Rows = {
    **dict.fromkeys(
        """dim channels layers l2_recon_loss use_hinge_loss lookup_free_quantization codebook_size
        vq_kwargs lfq_kwargs use_vgg_and_gan discr_layers""".split(),
        READ,
    ),
    "vgg": NO_EFFECT,  # a part of the task here: parts={"perceptual": FILE}
    "kwargs": READ,  # those of `RESNET_ENC_DEC` after "encdec_"
}
RESNET_ENC_DEC: Rows = dict.fromkeys(
    """dim channels layers layer_mults num_resnet_blocks resnet_groups
    first_conv_kernel_size""".split(),
    READ,
)
MUSE_BLOCKS: Rows = {
    **dict.fromkeys("dim depth dim_head heads ff_mult".split(), READ),
    "flash": NO_EFFECT,  # the same attention, in tiles
}
_TRANSFORMER: Rows = {
    **dict.fromkeys("num_tokens dim seq_len t5_name self_cond".split(), READ),
    "kwargs": READ,  # those of `MUSE_BLOCKS`
}
MASKGIT_TRANSFORMER: Rows = {**_TRANSFORMER, "dim_out": Only(None), "add_mask_id": Only(True)}
TOKEN_CRITIC: Rows = {**_TRANSFORMER, "dim_out": Only(1), "add_mask_id": Only(False)}
MASKGIT: Rows = {
    **dict.fromkeys(
        """image_size transformer token_critic self_token_critic vae cond_vae cond_image_size
        cond_drop_prob self_cond_prob no_mask_token_prob critic_loss_weight""".split(),
        READ,
    ),
    "noise_schedule": Only("cosine_schedule"),
}
X_CLIP: Rows = {
    **dict.fromkeys(
        """dim_text dim_image dim_latent num_text_tokens text_enc_depth text_seq_len text_heads
        text_dim_head text_has_cls_token text_pad_id text_rotary_pos_emb text_causal_mask
        text_eos_id text_encode_without_mask visual_has_cls_token
        visual_enc_depth visual_heads visual_dim_head visual_image_size visual_patch_size
        visual_patch_dropout channels use_all_token_embeds downsample_image_embeds
        decoupled_contrastive_learning extra_latent_projection use_mlm text_ssl_loss_weight
        use_visual_ssl visual_ssl_type visual_ssl_hidden_layer simclr_temperature
        image_ssl_loss_weight multiview_loss_weight sim_reg_loss_weight""".split(),
        READ,
    ),
    "kwargs": READ,  # those of its masked language modelling after "mlm_"; others do nothing
    "checkpoint_during_training": NO_EFFECT,  # the same numbers with less memory
    "image_encoder": Only(None),
    "text_encoder": Only(None),
    "visual_ssl": Only(None),
}
# of its masked language modelling, without the "mlm_" before each
X_CLIP_MLM: Rows = dict.fromkeys(
    """mask_prob replace_prob random_token_prob mask_token_id mask_ignore_token_ids
    pad_token_id""".split(),
    READ,
)
# of its transformers, where one was given as text_encoder or image_encoder
X_CLIP_TRANSFORMER: Rows = {
    "attn_dropout": Only(0.0),
    "causal": Only(False),  # but for captions, `text_causal_mask`
}
MUSE: Rows = dict.fromkeys("base superres".split(), READ)

# of dalle2-pytorch
DECODER_UNET: Rows = {
    **dict.fromkeys(
        """dim image_embed_dim text_embed_dim cond_dim num_image_tokens num_time_tokens dim_mults
        channels channels_out self_attn attn_dim_head attn_heads lowres_cond lowres_noise_cond
        self_cond sparse_attn cosine_sim_cross_attn cosine_sim_self_attn cond_on_text_encodings
        max_text_len cond_on_image_embeds add_image_embeds_to_time init_dim init_conv_kernel_size
        resnet_groups resnet_weight_standardization num_resnet_blocks init_cross_embed
        init_cross_embed_kernel_sizes cross_embed_downsample cross_embed_downsample_kernel_sizes
        memory_efficient scale_skip_connection pixel_shuffle_upsample final_conv_kernel_size
        combine_upsample_fmaps""".split(),
        READ,
    ),
    # accepted there and never used, or without effect on what is computed
    **dict.fromkeys(
        "out_dim attend_at_middle checkpoint_during_training kwargs".split(), NO_EFFECT
    ),
}
DECODER: Rows = {
    **dict.fromkeys(
        """unet clip image_size image_sizes channels timesteps sample_timesteps
        image_cond_drop_prob text_cond_drop_prob loss_type beta_schedule predict_x_start predict_v
        random_crop_sizes use_noise_for_lowres_cond use_blur_for_lowres_cond
        lowres_downsample_first blur_prob blur_sigma blur_kernel_size lowres_noise_sample_level
        learned_variance learned_variance_constrain_frac vb_loss_weight unconditional
        use_dynamic_thres dynamic_thres_percentile p2_loss_weight_gamma p2_loss_weight_k
        ddim_sampling_eta auto_normalize_img""".split(),
        READ,
    ),
    **dict.fromkeys("clip_denoised clip_x_start clip_adapter_overrides".split(), NO_EFFECT),
    "vae": Only(()),
    "predict_x_start_for_latent_diffusion": NO_EFFECT,  # without a vae
}

# of OpenCLIP; dropouts here and below are those of its own training, which a run here has not
OPEN_CLIP: Rows = {
    **dict.fromkeys("embed_dim vision_cfg text_cfg quick_gelu init_logit_bias".split(), READ),
    "init_logit_scale": NO_EFFECT,  # of the first weights
    "nonscalar_logit_scale": Only(False),
    "cast_dtype": NO_EFFECT,  # in float32
    "output_dict": NO_EFFECT,
}
OPEN_CLIP_IN_A_CONFIG: Rows = {"custom_text": Only(False), "multimodal_cfg": Only(None)}
_OPEN_CLIP_TOWER: Rows = {
    **dict.fromkeys("width layers mlp_ratio norm_kwargs".split(), READ),
    "act_kwargs": Only(None, {}, {"approximate": "none"}),
    "ls_init_value": Only(None),
    "output_tokens": NO_EFFECT,
}
CLIP_VISION_CFG: Rows = {
    **_OPEN_CLIP_TOWER,
    **dict.fromkeys("head_width patch_size image_size".split(), READ),
    "pool_type": Only("tok"),
    "final_ln_after_pool": NO_EFFECT,  # on the class token
    "attentional_pool": Only(False, None),
    "no_ln_pre": Only(False),
    "pos_embed_type": READ,  # as the weights have them
    "timm_model_name": Only(None, ""),
    **dict.fromkeys(  # without the above, and the dropout of patches
        """attn_pooler_queries attn_pooler_heads timm_model_pretrained timm_pool timm_proj
        timm_proj_bias timm_drop timm_drop_path patch_dropout""".split(),
        NO_EFFECT,
    ),
}
CLIP_TEXT_CFG: Rows = {
    **_OPEN_CLIP_TOWER,
    **dict.fromkeys("context_length vocab_size heads".split(), READ),
    "pool_type": Only("argmax"),  # the end token, which a caption's mask tells here
    "final_ln_after_pool": NO_EFFECT,
    "no_causal_mask": Only(False),
    "embed_cls": Only(False),
    "proj_type": Only("linear"),
    "proj_bias": Only(False),
    "hf_model_name": Only(None, ""),
    **dict.fromkeys(  # without the above; the vocabulary is given beside the network
        """hf_model_pretrained hf_proj_type hf_pooler_type pad_id hf_tokenizer_name
        tokenizer_kwargs""".split(),
        NO_EFFECT,
    ),
}

# of transformers; what every configuration has there is no argument of the network
_CLIP_TOWER: Rows = {
    **dict.fromkeys(
        """hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act
        layer_norm_eps""".split(),
        READ,
    ),
    **dict.fromkeys(
        "projection_dim attention_dropout initializer_range initializer_factor".split(), NO_EFFECT
    ),
}
CLIP_VISION_CONFIG: Rows = {
    **_CLIP_TOWER,
    **dict.fromkeys("image_size patch_size".split(), READ),
    "num_channels": Only(3),
}
CLIP_TEXT_CONFIG: Rows = {
    **_CLIP_TOWER,
    **dict.fromkeys("vocab_size max_position_embeddings".split(), READ),
    # the ends of captions, which their masks tell here
    **dict.fromkeys("pad_token_id bos_token_id eos_token_id".split(), NO_EFFECT),
}
CLIP_CONFIG: Rows = {
    **dict.fromkeys("text_config vision_config projection_dim".split(), READ),
    **dict.fromkeys("logit_scale_init_value initializer_factor".split(), NO_EFFECT),
}
DINOV2_CONFIG: Rows = {
    **dict.fromkeys(
        """hidden_size num_hidden_layers num_attention_heads mlp_ratio layer_norm_eps image_size
        patch_size use_swiglu_ffn""".split(),
        READ,
    ),
    "hidden_act": Only("gelu"),
    "num_channels": Only(3),
    "qkv_bias": Only(True),
    **dict.fromkeys(  # of its training, or of a backbone's feature maps
        """hidden_dropout_prob attention_probs_dropout_prob drop_path_rate initializer_range
        layerscale_value use_mask_token apply_layernorm reshape_hidden_states _out_features
        _out_indices""".split(),
        NO_EFFECT,
    ),
}


def check(kind: str, rows: Rows, said: Mapping[str, Any]) -> None:
    """Refuses what the network or the system here does not do.

    Args:
      kind: the class, for the message. rows: its arguments. said: the arguments that are known.

    Raises:
      UserError: one sentence with all arguments that are not known, or have a value that is
        not supported.
    """
    wrong = []
    for name, value in said.items():
        row = rows.get(name)
        if row is None:
            wrong.append(
                f"{kind} has {name}={values.shown(value)}, an argument of no release known here"
                f"{_nearest(str(name), rows)}"
            )
        elif isinstance(row, Only) and value not in row:
            wrong.append(
                f"{kind} has {name}={values.shown(value)}, which has no form here; what there is: "
                f"{name}={row.values[0]!r}"
            )
    if wrong:
        raise UserError("; ".join(wrong) + ".")


def check_kinds(kind: str, kinds: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Refuses values of another type than an argument has, or out of its range.

    Args:
      kind: what stands before the arguments, for the message. kinds: annotations by argument; one
        without is not checked. said: the arguments that are known.

    Raises:
      UserError: one sentence with all of them.
    """
    found = {name: values.problem(value, kinds.get(name, Any)) for name, value in said.items()}
    wrong = [f"{kind}.{n}={values.shown(said[n])} {why}" for n, why in found.items() if why]
    if wrong:
        raise UserError("; ".join(wrong) + ".")


def _nearest(name, rows):
    close = difflib.get_close_matches(name, rows, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def readable(readers: Mapping[str, Callable[[Any], Any]], module: Any) -> dict[str, Any]:
    """The arguments of a live module by the readers of each; those that a release of the package
    does not have are left out.
    """
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read(module)
        except AttributeError:
            continue
    return found
