"""Options of x-clip's CLIP and of dalle2-pytorch's networks, drawn by chance and so small that a
network compiles in seconds.
"""

from typing import Any

import numpy as np

TEXT_WIDTH, TIMESTEPS = 10, 30


class Chance:
    """Choices that a seed makes."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def of(self, *values: Any) -> Any:
        """One of the values."""
        return values[self._rng.integers(len(values))]

    def each(self, count: int, *values: Any) -> tuple[Any, ...]:
        """So many of the values."""
        return tuple(self.of(*values) for _ in range(count))

    def one_or_each(self, count: int, *values: Any) -> Any:
        """One value for all levels, or one for each."""
        return self.of(self.of(*values), self.each(count, *values))


def clip(seed: int) -> dict[str, Any]:
    """Arguments of x-clip's CLIP."""
    chance = Chance(seed)
    of = chance.of
    side, patch = of((16, 8), (16, 4), (24, 8), (8, 4))
    by_tokens = of(False, True)
    downsample = by_tokens and of(False, True)
    extra, mlm = of(False, True), of(False, True)
    found = dict(
        dim_text=of(16, 24), dim_image=of(16, 32), dim_latent=of(8, 16), num_text_tokens=40,
        text_enc_depth=of(1, 2), text_seq_len=of(7, 9), text_heads=of(1, 3),
        text_dim_head=of(8, 12, 40), text_rotary_pos_emb=of(False, True),
        text_encode_without_mask=of(False, True), visual_enc_depth=of(1, 2), visual_heads=of(1, 2),
        visual_dim_head=of(8, 16), visual_image_size=side, visual_patch_size=patch,
        visual_patch_dropout=0.0 if downsample else of(0.0, 0.3, 0.7), channels=of(1, 3, 4),
        use_all_token_embeds=by_tokens, downsample_image_embeds=downsample,
        decoupled_contrastive_learning=of(False, True), extra_latent_projection=extra,
        use_mlm=mlm, text_ssl_loss_weight=of(0.05, 0.2), multiview_loss_weight=of(0.1, 0.3),
        sim_reg_loss_weight=of(0.0, 0.4) if extra and not by_tokens else 0.0,
        checkpoint_during_training=of(False, True),
    )  # fmt: skip
    if mlm:
        found |= dict(
            mlm_mask_prob=of(0.15, 0.4), mlm_replace_prob=of(0.9, 0.5),
            mlm_random_token_prob=of(0.0, 0.1), mlm_mask_token_id=of(2, 40),
        )  # fmt: skip
    return found


def views(seed: int, options: dict[str, Any]) -> tuple[int, int]:
    """Further views of the images and of the captions in the loss of such a CLIP; the package's
    similarity regulariser has none.
    """
    of = Chance(seed + 1000).of
    if options["sim_reg_loss_weight"]:
        return 0, 0
    # a hidden word is one that is not looked at
    return of(0, 1, 2), 0 if options["text_encode_without_mask"] else of(0, 1)


def prior_network(seed: int) -> dict[str, Any]:
    """Arguments of dalle2-pytorch's `DiffusionPriorNetwork`."""
    of = Chance(seed).of
    timesteps = of(None, TIMESTEPS)
    return dict(
        dim=of(16, 24) if timesteps is None else of(16, 17), depth=of(1, 2), dim_head=of(4, 8, 40),
        heads=of(1, 3), ff_mult=of(1, 2, 4), num_timesteps=timesteps, num_time_embeds=of(1, 2),
        num_image_embeds=of(1, 3), num_text_embeds=of(1, 2), max_text_len=of(4, 6, 9),
        self_cond=of(False, True), norm_in=of(False, True), norm_out=of(False, True),
        attn_dropout=of(0.0, 0.1), ff_dropout=of(0.0, 0.1), final_proj=of(False, True),
        normformer=of(False, True), rotary_emb=of(False, True),
    )  # fmt: skip


def prior(seed: int) -> dict[str, Any]:
    """Arguments of dalle2-pytorch's `DiffusionPrior` around such a network."""
    of = Chance(seed + 2000).of
    v, x0 = of((False, True), (False, False), (True, False), (True, True))
    return dict(
        timesteps=TIMESTEPS, beta_schedule=of("cosine", "linear", "quadratic", "sigmoid", "jsd"),
        loss_type=of("l1", "l2", "huber"), predict_x_start=x0, predict_v=v,
        text_cond_drop_prob=of(0.0, 0.2), image_cond_drop_prob=of(0.0, 0.3),
        condition_on_text_encodings=of(False, True), image_embed_scale=of(None, 3.0),
        training_clamp_l2norm=of(False, True), sampling_clamp_l2norm=of(False, True),
        sampling_final_clamp_l2norm=of(False, True), init_image_embed_l2norm=of(False, True),
    )  # fmt: skip


def unet(seed: int) -> dict[str, Any]:
    """Arguments of dalle2-pytorch's `Unet`, but for those that its `Decoder` sets."""
    chance = Chance(seed + 3000)
    of = chance.of
    levels, dim = of(1, 2, 2, 3), of(8, 16)
    efficient = of(False, True)
    first = of(1, 2) if efficient else 1
    combined = of(False, True)
    return dict(
        dim=dim, dim_mults=(first, *chance.each(levels - 1, 1, 2, 3)),
        image_embed_dim=of(5, 12), text_embed_dim=TEXT_WIDTH, cond_dim=of(None, 6, 16),
        num_image_tokens=of(1, 3), num_time_tokens=of(1, 2),
        self_attn=chance.one_or_each(levels, False, True), attn_dim_head=of(4, 8),
        attn_heads=of(1, 3), self_cond=of(False, True), sparse_attn=of(False, True),
        cosine_sim_cross_attn=of(False, True), cosine_sim_self_attn=of(False, True),
        cond_on_text_encodings=of(False, True), max_text_len=of(3, 4, 6),
        add_image_embeds_to_time=of(False, True),
        init_conv_kernel_size=of(3, 7), init_cross_embed=of(False, True),
        init_cross_embed_kernel_sizes=of((3,), (7, 3), (3, 5, 9)),
        resnet_groups=chance.one_or_each(levels, 2, 4, 8),
        resnet_weight_standardization=of(False, True),
        num_resnet_blocks=chance.one_or_each(levels, 0, 1, 2),
        cross_embed_downsample=of(False, True),
        cross_embed_downsample_kernel_sizes=of((2,), (2, 4), (6, 2)),
        memory_efficient=efficient, scale_skip_connection=of(False, True),
        pixel_shuffle_upsample=of(False, True), final_conv_kernel_size=of(1, 3),
        combine_upsample_fmaps=combined, checkpoint_during_training=of(False, True),
    )  # fmt: skip


def alone(seed: int) -> dict[str, Any]:
    """What a `Unet` outside of a `Decoder` is told beside `unet`."""
    of = Chance(seed + 4000).of
    channels, lowres = of(1, 3, 4), of(False, True)
    return dict(
        channels=channels, channels_out=of(None, channels, 2 * channels), lowres_cond=lowres,
        lowres_noise_cond=lowres and of(False, True), cond_on_image_embeds=of(False, True),
        init_dim=of(None, "dim"),
    )  # fmt: skip


def decoder(seed: int, count: int) -> dict[str, Any]:
    """Arguments of dalle2-pytorch's `Decoder` with so many U-Nets."""
    chance = Chance(seed + 5000)
    of = chance.of
    noise = chance.each(count - 1, False, True)
    blur = tuple(True if not noised else of(False, True) for noised in noise)
    return dict(
        image_sizes=of((8, 16), (8, 24)) if count == 2 else (8,), timesteps=TIMESTEPS,
        image_cond_drop_prob=of(0.0, 0.2), text_cond_drop_prob=of(0.0, 0.5),
        loss_type=of("l1", "l2", "huber"),
        beta_schedule=of(None, chance.each(count, "cosine", "linear", "quadratic", "sigmoid")),
        predict_x_start=chance.one_or_each(count, False, True),
        predict_v=chance.one_or_each(count, False, True),
        random_crop_sizes=None if count == 1 else (None, of(None, 8)),
        use_noise_for_lowres_cond=noise, use_blur_for_lowres_cond=blur,
        lowres_downsample_first=of(False, True), blur_prob=of(0.5, 1.0),
        blur_sigma=of(0.6, (0.4, 0.8)), blur_kernel_size=of(3, 5, (3, 7)),
        learned_variance=of(True, False, chance.each(count, False, True)),
        learned_variance_constrain_frac=of(False, True), vb_loss_weight=of(0.001, 0.1),
        unconditional=of(False, False, True), p2_loss_weight_k=of(1, 2),
        p2_loss_weight_gamma=chance.one_or_each(count, 0.0, 0.5),
    )  # fmt: skip
