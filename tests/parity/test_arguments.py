"""Every argument of the packages' constructors is honoured, or refused by its name: from a live
module, from a stored configuration, and as a field on the command line.

The tables of `convert.arguments` have a row for each argument of the installed packages. Each row
has a trial here: another value than the default, and where it arrives. That the networks compute
the same with it is shown beside it, or by the configurations of the other parity tests, which are
asked whether they have it.
"""

import inspect

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.config import fields_of
from t2i_jax.convert import arguments, unet_fields
from t2i_jax.convert import imagen as imagen_tables
from t2i_jax.convert import unet as unet_tables
from t2i_jax.convert.arguments import NO_EFFECT, READ, Only
from t2i_jax.convert.ratio import ratio
from t2i_jax.errors import UserError
from t2i_jax.models import unet as ours
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.systems.imagen import weights as imagen_weights
from t2i_jax.systems.imported import TorchFile
from t2i_jax.systems.parti import weights as parti_weights
from t2i_jax.systems.tokenizer import weights as tokenizer_weights
from tests.parity import test_unet
from tests.parity.reference import load

imagen_pytorch = load("imagen_pytorch")
parti_pytorch = load("parti_pytorch")
torch = pytest.importorskip("torch")
quantizers = load("vector_quantize_pytorch")
package = load("imagen_pytorch.imagen_pytorch")
configs = load("imagen_pytorch.configs")

CONSTRUCTORS = {
    "Unet": (package.Unet, arguments.UNET),
    "Imagen": (imagen_pytorch.Imagen, arguments.IMAGEN),
    "ElucidatedImagen": (imagen_pytorch.ElucidatedImagen, arguments.ELUCIDATED_IMAGEN),
    "ImagenTrainer": (imagen_pytorch.ImagenTrainer, arguments.IMAGEN_TRAINER),
    "VitVQGanVAE": (parti_pytorch.VitVQGanVAE, arguments.VIT_VQGAN_VAE),
    "ViTEncDec": (parti_pytorch.vit_vqgan.ViTEncDec, arguments.VIT_ENC_DEC),
    "LFQ": (quantizers.LFQ, arguments.LFQ),
    "VectorQuantize": (quantizers.VectorQuantize, arguments.VECTOR_QUANTIZE),
    "Parti": (parti_pytorch.Parti, arguments.PARTI),
}


def parameters(constructor):
    return dict(list(inspect.signature(constructor.__init__).parameters.items())[1:])


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_argument_of_the_installed_package_is_decided(name):
    constructor, rows = CONSTRUCTORS[name]
    assert set(parameters(constructor)) == set(rows), "decide what becomes of it"


def test_an_argument_of_another_release_is_refused():
    with pytest.raises(UserError, match="Unet has new_option=3, an argument of no release"):
        arguments.check("Unet", arguments.UNET, {"dim": 8, "new_option": 3})
    theirs = package.Unet(**test_unet.SMALL)
    theirs._locals["new_option"] = True
    with pytest.raises(UserError, match="new_option=True"):
        convert.from_torch(theirs)


def test_configurations_and_presets_have_no_arguments_of_their_own():
    for name, rows in (
        ("ImagenConfig", arguments.IMAGEN),
        ("ElucidatedImagenConfig", arguments.ELUCIDATED_IMAGEN),
    ):
        fields = getattr(configs, name).model_fields
        assert set(fields) <= {*rows, *arguments.IN_A_CONFIG}
    assert set(configs.UnetConfig.model_fields) <= set(arguments.UNET)
    assert set(configs.NullUnetConfig.model_fields) == {"is_null"}
    for name in ("BaseUnet64", "SRUnet256", "SRUnet1024", "NullUnet"):
        assert set(parameters(getattr(imagen_pytorch, name))) == {"args", "kwargs"}


@pytest.mark.parametrize("name", ["BaseUnet64", "SRUnet256", "SRUnet1024"])
def test_presets(name, monkeypatch):
    """With all arguments but the width, which is that of a toy."""
    small = dict(dim=8, attn_heads=2, attn_dim_head=8, text_embed_dim=6, max_text_len=4)
    theirs = getattr(package, name)(**small, num_resnet_blocks=1)
    model, _ = convert.from_torch(theirs)
    wanted = getattr(ours, name)(**small, num_resnet_blocks=1)
    told = theirs._locals
    full = getattr(ours, name)()
    for field in ("dim_mults", "layer_attns", "layer_cross_attns", "memory_efficient"):
        assert told[field] == getattr(wanted, field) == getattr(full, field)
    assert all(unet_fields.same(f, _fields(model), told[f]) for f in _fields(model) if f in told)
    recorded = {}
    monkeypatch.setattr(package.Unet, "__init__", lambda self, **fields: recorded.update(fields))
    getattr(package, name)()
    assert {f: getattr(full, f) for f in recorded} == recorded


def _fields(model):
    return {f: getattr(model, f) for f in arguments.UNET if hasattr(model, f)}


# U-Nets ------------------------------------------------------------------------------------------

UNUSABLE = ("cross_embed_downsample", "cross_embed_downsample_kernel_sizes")


def test_every_argument_of_a_unet_is_in_a_configuration_of_the_parity_tests():
    """There its outputs and gradients are compared, read from a live module."""
    defaults = {name: p.default for name, p in parameters(package.Unet).items()}
    tried = {
        name
        for options in test_unet.CONFIGURATIONS.values()
        for name, value in options.items()
        if value != defaults[name]
    }
    assert set(arguments.UNET) - tried == set(UNUSABLE)
    with pytest.raises(TypeError):  # the package itself fails
        package.Unet(**test_unet.SMALL, cross_embed_downsample=True)


@pytest.mark.parametrize("name", test_unet.CONFIGURATIONS)
def test_a_stored_configuration_of_a_unet_is_as_good_as_the_module(name):
    theirs = test_unet.make(name)[0]
    model, params = convert.from_torch(theirs)
    stored, state = theirs.to_config_and_state_dict()
    again, weights = convert.from_torch({"config": stored, "state_dict": state})
    assert again == model
    assert convert.to_state(again, weights).keys() == convert.to_state(model, params).keys()
    # within a cascade those fields are the cascade's, and its channels are those of the images
    if model.channels_out in (None, model.channels):
        cascade = {f"unets.0.{key}": value for key, value in state.items()}
        settings = {"unets": [{**stored, "lowres_cond": "?"}], "channels": model.channels}
        whole = {"model": cascade, "imagen_params": settings, "imagen_type": "original"}
        assert convert.from_torch(whole)[0].unets == (model,)
        with pytest.raises(UserError, match="cond_dim=99 contradicts the weights"):
            convert.from_torch({"config": {**stored, "cond_dim": 99}, "state_dict": state})


@pytest.mark.parametrize("name", ["linear attention", "super-resolution"])
def test_every_argument_of_a_unet_as_a_field(name):
    """What the weights tell can be repeated in the package's form and not be changed; what they do
    not tell is taken; what is no field is refused.
    """
    theirs = test_unet.make(name)[0]
    model, _ = convert.from_torch(theirs)
    state, stored = theirs.state_dict(), theirs._locals
    hidden = {
        "channels",
        "self_cond",
        "cond_images_channels",
        "scale_skip_connection",
        "resize_mode",
        "use_linear_cross_attn",
        "attn_heads",
        "attn_dim_head",
    }
    needed = {f: stored[f] for f in hidden}
    assert convert.from_torch(state, **needed)[0] == model
    told = {
        f: stored[f]
        for f in arguments.UNET
        if f not in ("out_dim", "dropout", "num_image_tokens", "layer_attns_add_text_cond")
        and f not in UNUSABLE
    }
    assert convert.from_torch(state, **told)[0] == model
    other = {
        "scale_skip_connection": not model.scale_skip_connection,
        "resize_mode": "area",
        "use_linear_cross_attn": (False, True),
    }
    for field in arguments.UNET:
        given = {**needed, field: other.get(field, 31)}
        try:
            found, _ = convert.from_torch(state, **given)
        except UserError as refused:
            assert field in str(refused) and field not in other
        else:
            # of a part that this network does not have, or not told by any array
            assert field in other or field in _without_effect(model)
            if field in other:
                assert unet_fields.same(field, _fields(found), other[field])


def _without_effect(model):
    """Fields that say nothing of this network."""
    found = {"layer_attns_depth"} if not any(model.layer_attns) else set()
    found |= {"attn_pool_num_latents"} if not model.attn_pool_text else set()
    found |= (
        {"init_conv_kernel_size"} if model.init_cross_embed else {"init_cross_embed_kernel_sizes"}
    )
    return found | {"cross_embed_downsample_kernel_sizes"}


@pytest.mark.parametrize(("dim", "mult"), [(8, 8 / 3), (24, 4 / 3), (8, 0.7)])
def test_widths_of_feed_forwards_are_those_of_the_file(dim, mult):
    theirs = package.Unet(**{**test_unet.SMALL, "dim": dim, "dim_mults": (1, 2, 3)}, ff_mult=mult)
    for source in (theirs, theirs.state_dict()):
        model, params = convert.from_torch(source)
        theirs.load_state_dict(convert.to_torch(model, params), strict=True)
    assert ratio([(dim, int(dim * mult)), (3 * dim, int(3 * dim * mult))])
    # levels of several ratios, which no argument of the package makes, are kept as well
    odd = ours.Unet(dim=8, dim_mults=(1, 2), ff_mult=(3.0, 1.25), text_embed_dim=6, max_text_len=4)
    shapes = unet_tables.NETWORK.shapes(odd)
    zeros = {k: np.zeros(v.shape, v.dtype) for k, v in convert.engine.flatten(shapes).items()}
    state = convert.to_state(odd, convert.engine.unflatten(zeros))
    assert convert.from_torch(state)[0].ff_mult == (3.0, 1.25)


INPUTS = {  # made with, and what of it a state dict alone tells
    "its own channels": (dict(channels=1, channels_out=2), dict(channels=1)),
    "a smaller image": (dict(channels=2, channels_out=5, lowres_cond=True), dict(channels=2)),
    "a smaller image and no last block": (
        dict(channels=2, channels_out=3, lowres_cond=True, final_resnet_block=False),
        dict(channels=2),
    ),
    "more channels": (dict(channels=6, channels_out=3), None),
    "fewer channels": (dict(channels=3, channels_out=6), None),
    "the last estimate": (dict(channels=3, self_cond=True), None),
    "all": (dict(channels=3, lowres_cond=True, self_cond=True, cond_images_channels=3), None),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_the_first_convolution_from_a_state_dict_alone(name):
    options, told = INPUTS[name]
    theirs = package.Unet(**test_unet.SMALL, **options)
    state = theirs.state_dict()
    given = {f: getattr(theirs, f) for f in ("channels", "self_cond", "cond_images_channels")}
    if told is None:
        with pytest.raises(UserError, match="give channels, self_cond and cond_images_channels"):
            convert.from_torch(state)
        model, _ = convert.from_torch(state, **given)
        if theirs.channels == theirs.channels_out and not theirs.lowres_cond:
            assert convert.from_torch(state, self_cond=theirs.self_cond)[0] == model
    else:
        model, _ = convert.from_torch(state)
    assert {f: getattr(model, f) for f in given} == given
    assert model.channels_out == theirs.channels_out
    with pytest.raises(UserError, match="channels=9 contradicts the weights"):
        convert.from_torch(state, channels=9)


# Cascades ----------------------------------------------------------------------------------------

SIZES = (8, 16)
TINY = dict(
    dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8, text_embed_dim=6, max_text_len=4,
    layer_attns=False, layer_cross_attns=False,
)  # fmt: skip


def each(field):
    """Where a value of each stage arrives."""

    def of(task):
        values = []
        for stage in task.stages:
            value = stage
            for part in field.split("."):
                value = getattr(value, part)
            values.append(value)
        return tuple(values)

    return of


# Another value than the default, where it arrives, and what stands there; None: it is refused.
BOTH = {
    "image_sizes": ((8, 32), each("image_size"), (8, 32)),
    "text_encoder_name": ("t5-small", lambda task: task.text.dim, 6),
    "text_embed_dim": (6, lambda task: task.text.dim, 6),
    "channels": (1, lambda task: task.channels, 1),
    "cond_drop_prob": (0.4, lambda task: task.cond_drop_prob, 0.4),
    "random_crop_sizes": ((None, 8), each("crop_size"), (None, 8)),
    "lowres_noise_schedule": ("cosine", each("lowres.schedule"), ("cosine",) * 2),
    "lowres_sample_noise_level": (0.3, each("lowres.sample_level"), (0.3,) * 2),
    "per_sample_random_aug_noise_level": (True, each("lowres.per_row"), (True,) * 2),
    "condition_on_text": (False, lambda task: task.text, None),
    "auto_normalize_img": (False, lambda task: task.channels, 3),
    "dynamic_thresholding": ((True, False), each("percentile"), (0.95, None)),
    "dynamic_thresholding_percentile": (0.9, each("percentile"), (0.9,) * 2),
    "only_train_unet_number": (2, lambda task: task.train_stages, (2,)),
    "temporal_downsample_factor": ((2, 1), None, None),
    "resize_cond_video_frames": (False, lambda task: task.channels, 3),
    "resize_mode": ("bicubic", each("resize"), ("bicubic",) * 2),
}
ORIGINAL = {
    "timesteps": ((4, 7), each("steps"), (4, 7)),
    "loss_type": ("huber", each("noise.distance"), ("huber",) * 2),
    "noise_schedules": (("linear", "cosine"), each("noise.schedule"), ("linear", "cosine")),
    "pred_objectives": (("v", "x_start"), each("noise.objective"), ("v", "x_start")),
    "min_snr_loss_weight": ((True, False), each("noise.weighting"), ("min_snr", "snr")),
    "min_snr_gamma": ((3, 4), each("noise.min_snr_gamma"), (3.0, 4.0)),
}
ELUCIDATED = {
    "num_sample_steps": ((4, 7), each("steps"), (4, 7)),
    "sigma_min": (0.01, each("noise.sigma_min"), (0.01,) * 2),
    "sigma_max": ((70, 160), each("noise.sigma_max"), (70.0, 160.0)),
    "sigma_data": (0.4, each("noise.sigma_data"), (0.4,) * 2),
    "rho": (5, each("noise.rho"), (5.0,) * 2),
    "P_mean": (-1.0, each("noise.P_mean"), (-1.0,) * 2),
    "P_std": (1.5, each("noise.P_std"), (1.5,) * 2),
    "S_churn": (40, each("churn.amount"), (40.0,) * 2),
    "S_tmin": (0.1, each("churn.low"), (0.1,) * 2),
    "S_tmax": (40, each("churn.high"), (40.0,) * 2),
    "S_noise": (1.1, each("churn.scale"), (1.1,) * 2),
}
CASCADES = {
    "Imagen": (imagen_pytorch.Imagen, configs.ImagenConfig, BOTH | ORIGINAL, arguments.IMAGEN),
    "ElucidatedImagen": (
        imagen_pytorch.ElucidatedImagen,
        configs.ElucidatedImagenConfig,
        BOTH | ELUCIDATED,
        arguments.ELUCIDATED_IMAGEN,
    ),
}


# They change where others arrive, or are refused.
ALONE = (
    "channels", "condition_on_text", "dynamic_thresholding_percentile", "min_snr_gamma",
    "temporal_downsample_factor",
)  # fmt: skip


def cascade_of(source, fields=None, options=None):
    """The task that the weights make."""
    file = TorchFile(source, None, fields or {}, {"imagen": options} if options else {})
    return imagen_weights.from_torch(file).task


@pytest.mark.parametrize("name", CASCADES)
def test_every_argument_of_a_cascade(name, tmp_path):
    kind, config, trials, rows = CASCADES[name]
    assert trials.keys() | {"unets"} == rows.keys()
    plain = kind([package.Unet(**TINY) for _ in SIZES], image_sizes=SIZES, text_embed_dim=6)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    together = [argument for argument in trials if argument not in ALONE]
    for group in (together, *([argument] for argument in ALONE if argument in trials)):
        told = {"image_sizes": SIZES, "text_embed_dim": 6}
        told |= {argument: trials[argument][0] for argument in group}
        made = config(unets=[TINY, TINY], **told).create()
        stored = {
            "model": made.state_dict(),
            "version": "2.1.0",
            "steps": torch.tensor([1, 1]),
            "imagen_type": "elucidated" if name.startswith("Elu") else "original",
            "imagen_params": made._config,
        }
        torch.save(stored, tmp_path / "stored.pt")
        given = {"elucidated": name.startswith("Elu"), **told}
        if given.pop("text_encoder_name", None):  # of the T5 that --t5 names
            with pytest.raises(UserError, match="text_encoder_name='t5-small' is a name alone"):
                cascade_of(tmp_path / "plain.pt", {}, {**given, "text_encoder_name": "t5-small"})
        sources = {
            "live": (kind([package.Unet(**TINY) for _ in SIZES], **told),),
            "stored": (tmp_path / "stored.pt",),
            "command line": (tmp_path / "plain.pt", {}, given),
        }
        for of, source in sources.items():
            # what a file of other weights says of itself cannot be changed
            fixed = of == "command line" and group[0] in ("channels", "condition_on_text")
            if fixed or trials[group[0]][1] is None:
                with pytest.raises(UserError, match=f"{group[0]}="):
                    cascade_of(*source)
                continue
            task = cascade_of(*source)
            for argument in group:
                _, arrives, wanted = trials[argument]
                assert arrives(task) == wanted, (argument, of)


def test_what_a_cascade_is_told_and_its_weights_contradict(tmp_path):
    plain = imagen_pytorch.Imagen(
        [package.Unet(**TINY) for _ in SIZES], image_sizes=SIZES, text_embed_dim=6
    )
    path = tmp_path / "plain.pt"
    torch.save(plain.state_dict(), path)
    for options in (dict(video=True), dict(text_embed_dim=7), dict(channels=1), dict(unets=())):
        name = next(iter(options))
        with pytest.raises(UserError, match=name):
            cascade_of(path, {}, {"image_sizes": SIZES, **options})
    with pytest.raises(UserError, match="timestep=5, an argument of no release.*'timesteps'"):
        cascade_of(path, {}, {"image_sizes": SIZES, "timestep": 5})
    plain.text_embed_dim = 7
    with pytest.raises(UserError, match="text_embed_dim=7 contradicts"):
        cascade_of(plain)
    plain.text_embed_dim = 6
    plain.force_unconditional_()
    with pytest.raises(UserError, match="cond_on_text=False contradicts"):
        cascade_of(plain)
    video = imagen_pytorch.Imagen(
        imagen_pytorch.Unet3D(dim=8, dim_mults=(1,), text_embed_dim=6, max_text_len=4),
        image_sizes=8,
        text_embed_dim=6,
    )
    with pytest.raises(UserError, match="video=True"):
        cascade_of(video)
    with pytest.raises(UserError, match="t5='t5-small' is not 'google/t5-v1_1-base'"):
        plain = imagen_pytorch.Imagen(
            [package.Unet(**TINY) for _ in SIZES], image_sizes=SIZES, text_embed_dim=6
        )
        imagen_weights.from_torch(TorchFile(plain, "t5-small", {}, {}))


# What a trainer saves does not depend on its other arguments.
TRAINER = dict(
    lr=3e-3, eps=1e-6, beta1=0.8, beta2=0.95, max_grad_norm=1.0, group_wd_params=False,
    warmup_steps=3, cosine_decay_max_steps=9, only_train_unet_number=1, fp16=False, precision="no",
    split_batches=False, dl_tuple_output_keywords_names=("images",), verbose=False,
    split_valid_fraction=0.1, split_valid_from_train=True, split_random_seed=1, fs_kwargs={},
    max_checkpoints_keep=2, ema_beta=0.9,
)  # fmt: skip


def test_every_argument_of_the_trainer(tmp_path):
    imagen = imagen_pytorch.Imagen(
        [package.Unet(**TINY) for _ in SIZES], image_sizes=SIZES, text_embed_dim=6
    )
    other = TRAINER | dict(checkpoint_path=str(tmp_path / "folder"), checkpoint_every=5)
    named = {"kwargs" if name == "ema_beta" else name for name in other}
    elsewhere = {"imagen", "use_ema", "imagen_checkpoint_path", "checkpoint_fs"}
    assert named | elsewhere == set(arguments.IMAGEN_TRAINER)
    with pytest.raises(AssertionError):  # the package itself fails
        imagen_pytorch.ImagenTrainer(imagen_checkpoint_path=str(tmp_path / "no.pt"))
    found = []
    for i, options in enumerate((dict(use_ema=True), other, dict(use_ema=False))):
        trainer = imagen_pytorch.ImagenTrainer(imagen, **{"verbose": False, **options})
        trainer.steps += torch.tensor([2, 3])
        trainer.save(tmp_path / f"{i}.pt")
        found.append(imagen_tables.from_trainer(tmp_path / f"{i}.pt"))
    for one in found[1:]:
        assert one.model == found[0].model and one.steps == (2, 3)
        for stage, params in found[0].params.items():
            mine, theirs = (convert.engine.flatten(tree) for tree in (one.params[stage], params))
            assert all(np.array_equal(mine[path], theirs[path]) for path in theirs)
    assert found[1].averages is not None and found[2].averages is None


# Image tokenizers --------------------------------------------------------------------------------

VAE = dict(
    dim=16, image_size=16, layers=1, encdec_patch_size=4, encdec_heads=2, encdec_dim_head=8,
    codebook_size=16, use_vgg_and_gan=False,
)  # fmt: skip


def vae(**options):
    torch.manual_seed(0)
    return parti_pytorch.VitVQGanVAE(**{**VAE, **options})


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("discriminator", [False, True])
def test_channels_of_a_tokenizer(channels, discriminator):
    more = dict(use_vgg_and_gan=True, vgg=torch.nn.Identity(), discr_layers=1)
    theirs = vae(channels=channels, **(more if discriminator else {}))
    state = theirs.state_dict()
    sure = discriminator or channels in (2, 3)
    sources = {"live": (theirs, {}), "told": (state, dict(channels=channels))}
    sources |= {"by the patch": (state, dict(patch_size=4)), "alone": (state, {})}
    for of, (source, fields) in sources.items():
        if of == "alone" and not sure:
            with pytest.raises(UserError, match=r"are of channels=.* give channels"):
                convert.from_torch(source)
            continue
        model, weights = convert.from_torch(source, **fields)
        assert (model.channels, model.patch_size, model.image_size) == (channels, 4, 16)
        theirs.load_state_dict(convert.to_torch(model, weights), strict=True)
    with pytest.raises(UserError, match="channels=7 contradicts the weights"):
        convert.from_torch(state, channels=7)


# A value beside the default, and the field where it arrives; None for what is refused, "" for what
# has no effect.
OF_LFQ = {
    "entropy_loss_weight": (0.3, "entropy_loss_weight"),
    "commitment_loss_weight": (0.2, "commitment_weight"),
    "diversity_gamma": (1.5, "diversity_gamma"),
    "straight_through_activation": (torch.nn.Tanh(), None),
    "num_codebooks": (2, None),
    "keep_num_codebooks_dim": (True, None),
    "codebook_scale": (2.0, None),
    "frac_per_sample_entropy": (0.5, None),
    "has_projections": (False, None),
    "projection_has_bias": (False, None),
    "soft_clamp_input_value": (10.0, None),
    "cosine_sim_project_in": (True, None),
    "cosine_sim_project_in_scale": (3.0, ""),
    "channel_first": (False, None),
    "experimental_softplus_entropy_loss": (True, None),
    "entropy_loss_offset": (3.0, ""),
    "spherical": (True, None),
    "force_quantization_f32": (False, ""),
    "orthogonal_rotation": (True, None),
}
OF_VQ = {
    "codebook_dim": (8, "codebook_dim"),
    "decay": (0.7, "decay"),
    "kmeans_init": (True, ""),
    "commitment_weight": (0.5, "commitment_weight"),
    "rotation_trick": (False, "rotation_trick"),
    "heads": (2, None),
    "separate_codebook_per_head": (True, None),
    "eps": (1e-3, None),
    "freeze_codebook": (True, None),
    "kmeans_iters": (3, None),
    "sync_kmeans": (False, ""),
    "layernorm_after_project_in": (True, None),
    "threshold_ema_dead_code": (2, None),
    "channel_last": (False, ""),
    "accept_3d_fmap": (True, None),
    "commitment_use_cross_entropy_loss": (True, None),
    "orthogonal_reg_weight": (0.1, None),
    "orthogonal_reg_active_codes_only": (True, ""),
    "orthogonal_reg_max_codes": (4, ""),
    "codebook_diversity_loss_weight": (0.1, None),
    "codebook_diversity_temperature": (10.0, ""),
    "stochastic_sample_codes": (True, None),
    "sample_codebook_temp": (0.5, ""),
    "straight_through": (True, None),
    "directional_reparam": (True, None),
    "directional_reparam_variance": (1e-2, ""),
    "sync_codebook": (False, ""),
    "sync_affine_param": (True, ""),
    "ema_update": (False, None),
    "vq_bridge": (torch.nn.Identity(), None),
    "manual_ema_update": (True, None),
    "learnable_codebook": (True, None),
    "in_place_codebook_optimizer": (lambda p: torch.optim.SGD([torch.zeros(1)], lr=1.0), None),
    "manual_in_place_optimizer_update": (True, ""),
    "affine_param": (True, None),
    "affine_param_batch_decay": (0.5, ""),
    "affine_param_codebook_decay": (0.5, ""),
    "sync_update_v": (0.5, None),
    "return_zeros_for_masked_padding": (False, ""),
    "route_gradients_to_input": (False, None),
}
# Without others the library does not take them, or they mean nothing; where it fails all the same,
# the refusal is shown on the attribute.
WITH = {
    "kmeans_iters": dict(kmeans_init=True),
    "layernorm_after_project_in": dict(codebook_dim=8),
    "straight_through": dict(rotation_trick=False),
    "directional_reparam": dict(threshold_ema_dead_code=2),
    "separate_codebook_per_head": dict(heads=2),
    "cosine_sim_project_in_scale": dict(),
}
SAME_AS = {"directional_reparam": "threshold_ema_dead_code", "separate_codebook_per_head": "heads"}
FIXED = {  # by the tokenizer: that it sets them otherwise can only be made by hand
    "use_cosine_sim": False,
    "accept_image_fmap": False,
}
IMPOSSIBLE = {  # in a codebook on the sphere
    "orthogonal_reg_weight": ("orthogonal_reg_weight", 0.1),
    "learnable_codebook": ("_codebook.learnable_codebook", True),
    "vq_bridge": ("_codebook.vq_bridge", torch.nn.Identity()),
    "affine_param": ("_codebook.affine_param", True),
    "sync_update_v": ("sync_update_v", 0.5),
    "directional_reparam": ("directional_reparam", True),
    "accept_3d_fmap": ("accept_3d_fmap", True),
    **{name: (name, value) for name, value in FIXED.items()},
}


def test_every_argument_of_lfq():
    assert OF_LFQ.keys() | {"dim", "codebook_size"} == arguments.LFQ.keys()
    for argument, (value, field) in OF_LFQ.items():
        theirs = (
            vae(
                lfq_kwargs={"keep_num_codebooks_dim": True, argument: value}
                if argument == "num_codebooks"
                else {argument: value},
                dim=4 * 4 if argument != "has_projections" else 4,
            )
            if argument != "has_projections"
            else _with_projections()
        )
        _shows(argument, value, field, theirs, "LFQ")
        if field == "":
            _has_no_effect(quantizers.LFQ, {argument: value}, dim=16, codebook_size=16)


def _with_projections():
    """Linear maps between equal widths."""
    theirs = vae()
    theirs.quantizer = quantizers.LFQ(dim=4, codebook_size=16, has_projections=True)
    return theirs


def test_every_argument_of_the_codebook():
    rows = arguments.VECTOR_QUANTIZE.keys()
    assert OF_VQ.keys() | FIXED.keys() | {"dim", "codebook_size"} == rows
    common = dict(dim=16, codebook_size=16, accept_image_fmap=True, use_cosine_sim=True)
    for argument in rows - {"dim", "codebook_size"}:
        value, field = OF_VQ.get(argument, (FIXED.get(argument), None))
        theirs = vae(lookup_free_quantization=False)
        if argument in IMPOSSIBLE:
            place, value = IMPOSSIBLE[argument]
            *inside, name = place.split(".")
            setattr(
                getattr(theirs.quantizer, inside[0]) if inside else theirs.quantizer, name, value
            )
        else:
            options = {**common, **WITH.get(argument, {}), argument: value}
            theirs.quantizer = quantizers.VectorQuantize(**options)
        _shows(argument, value, field, theirs, "VectorQuantize")
        if field == "" and argument != "kmeans_init":
            _has_no_effect(quantizers.VectorQuantize, {argument: value}, **common)


def _shows(argument, value, field, theirs, kind):
    if field is None:
        with pytest.raises(UserError, match=f"{kind} has .*{argument}="):
            convert.from_torch(theirs)
    else:
        model, _ = convert.from_torch(theirs)
        assert not field or getattr(model, field) == value, argument
    if argument not in fields_of(VitVQGanVAE):
        with pytest.raises(UserError, match=f"no field '{argument}'"):
            convert.from_torch(vae().state_dict(), **{argument: value})


def _has_no_effect(kind, option, **common):
    x = torch.randn(2, 16, 4, 4)
    results = []
    for more in ({}, option):
        torch.manual_seed(0)
        quantiser = kind(**common, **more).train()
        results.append(quantiser(x)[:3])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other), option


def test_the_rotation_trick():
    assert convert.from_torch(vae(lookup_free_quantization=False))[0].rotation_trick
    from t2i_jax.nn import quantize

    library = load("vector_quantize_pytorch.vector_quantize_pytorch")
    rng = np.random.default_rng(0)
    x, code, slope = (rng.normal(size=(5, 8)).astype(np.float32) for _ in range(3))
    theirs = torch.tensor(x, requires_grad=True)
    value = library.rotate_to(theirs, torch.tensor(code))
    value.backward(torch.tensor(slope))
    import jax

    ours, pull_back = jax.vjp(lambda x: quantize.rotated(x, code), x)
    np.testing.assert_allclose(ours, value.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours, code, atol=1e-5)
    np.testing.assert_allclose(pull_back(slope)[0], theirs.grad.numpy(), atol=1e-5)


OF_VAE = {
    "dim": (24, "dim", 24),
    "image_size": (32, "image_size", 32),
    "channels": (1, "channels", 1),
    "layers": (2, "layers", 2),
    "lookup_free_quantization": (False, "lookup_free_quantization", False),
    "codebook_size": (64, "codebook_size", 64),
    "vq_kwargs": ({}, "codebook_size", 16),
    "lfq_kwargs": (dict(diversity_gamma=3.0), "diversity_gamma", 3.0),
    "discr_layers": (2, "discr_layers", 2),
    "vgg": (torch.nn.Identity(), "dim", 16),
    "encdec_patch_size": (2, "patch_size", 2),
    "encdec_dim_head": (4, "dim_head", 4),
    "encdec_heads": (4, "heads", 4),
    "encdec_ff_mult": (2, "ff_mult", 2),
}
OF_ITS_TASK = {
    "l2_recon_loss": (True, lambda task: (task.l1_weight, task.l2_weight), (0.0, 1.0)),
    "use_hinge_loss": (False, lambda task: task.gan_loss, "bce"),
    "use_vgg_and_gan": (True, lambda task: task.model.discr_layers, 1),
}


def test_every_argument_of_the_tokenizer(tmp_path):
    within = {f"encdec_{name}" for name in arguments.VIT_ENC_DEC} & OF_VAE.keys()
    assert (OF_VAE.keys() - within) | OF_ITS_TASK.keys() | {"kwargs"} == (
        arguments.VIT_VQGAN_VAE.keys()
    )
    own = {"dim", "image_size", "channels", "layers"}  # of the whole tokenizer
    assert own | {name.removeprefix("encdec_") for name in within} == arguments.VIT_ENC_DEC.keys()
    judged = dict(use_vgg_and_gan=True, vgg=torch.nn.Identity(), discr_layers=1)
    for argument, (value, field, wanted) in OF_VAE.items():
        more = judged if argument in ("discr_layers", "vgg") else {}
        model, weights = convert.from_torch(theirs := vae(**{**more, argument: value}))
        assert getattr(model, field) == wanted
        theirs.load_state_dict(convert.to_torch(model, weights), strict=True)
        if argument not in arguments.VIT_VQGAN_VAE or argument in (
            "vq_kwargs",
            "lfq_kwargs",
            "vgg",
        ):
            with pytest.raises(UserError, match=argument):
                convert.from_torch(theirs.state_dict(), **{argument: value})
    torch.save(vae(**judged).state_dict(), path := tmp_path / "vae.pt")
    for argument, (value, arrives, wanted) in OF_ITS_TASK.items():
        options = {"tokenizer": {argument: value}}
        for file in (
            TorchFile(vae(**{**judged, argument: value}), None, {}, {}),
            TorchFile(path, None, {}, options),
        ):
            assert arrives(tokenizer_weights.from_torch(file).task) == wanted
    with pytest.raises(UserError, match="tokenizer has nonsense=1"):
        tokenizer_weights.from_torch(TorchFile(path, None, {}, {"tokenizer": {"nonsense": 1}}))


OF_PARTI = {
    "dim": (24, lambda task: task.model.dim, 24),
    "depth": (2, lambda task: task.model.depth, 2),
    "dim_head": (4, lambda task: task.model.dim_head, 4),
    "heads": (3, lambda task: task.model.heads, 3),
    "dropout": (0.2, lambda task: task.model.dropout, 0.2),
    "ff_mult": (8 / 3, lambda task: int(task.model.ff_mult * 16), int(16 * 8 / 3)),
    "t5_name": ("t5-small", lambda task: task.text.dim, 6),
    "text_embed_dim": (7, lambda task: task.text.dim, 7),
    "cond_drop_prob": (0.4, lambda task: task.cond_drop_prob, 0.4),
    "max_text_len": (5, lambda task: task.model.max_text_len, 5),
    "vae_image_size": (32, None, None),
    "ignore_index": (0, None, None),
}


def test_every_argument_of_parti(tmp_path):
    assert OF_PARTI.keys() | {"vae", "vae_codebook_size"} == arguments.PARTI.keys()
    small = dict(dim=16, depth=1, dim_head=8, heads=2, text_embed_dim=6)
    with pytest.raises((AttributeError, AssertionError)):  # the package itself fails
        parti_pytorch.Parti(vae_codebook_size=16, **small)
    torch.save(parti_pytorch.Parti(vae=vae(), **small).state_dict(), path := tmp_path / "parti.pt")
    for argument, (value, arrives, wanted) in OF_PARTI.items():
        theirs = parti_pytorch.Parti(vae=vae(), **{**small, argument: value})
        if arrives is None:
            with pytest.raises(UserError, match=f"{argument}="):
                convert.from_torch(theirs)
        else:
            assert arrives(parti_weights.from_torch(TorchFile(theirs, None, {}, {})).task) == wanted
        fields, options = {argument: value}, {}
        if argument in ("cond_drop_prob", "t5_name", "ignore_index"):
            fields, options = options, {"parti": fields}
        given = TorchFile(path, None, fields, options)
        if argument in ("dropout", "max_text_len", "cond_drop_prob"):
            assert arrives(parti_weights.from_torch(given).task) == wanted
        else:  # the weights say otherwise, nothing there is called so, or --t5 says it
            with pytest.raises(UserError, match=argument):
                parti_weights.from_torch(given)
    assert parti_weights.from_torch(TorchFile(path, None, {}, {})).task.cond_drop_prob == 0.25
    harmless = parti_pytorch.Parti(vae=vae(), **small, ignore_index=-100)
    convert.from_torch(harmless)
    with pytest.raises(UserError, match="t5='t5-large' is not 't5-small'"):
        named = parti_pytorch.Parti(vae=vae(), **small, t5_name="t5-small")
        parti_weights.from_torch(TorchFile(named, "t5-large", {}, {}))


@pytest.mark.parametrize(
    ("values", "within", "without"),
    [
        ((1,), [1, 1.0, (1, 1), [1.0]], [True, "1", None, 2, (1, 2), (), {1}]),
        ((None, True), [None, True, (True, None)], [1, False, "None"]),
        (((),), [(), []], [(3,), [0], "vae", None, 0, {}]),
        (((1, 2), 5), [(1, 2), [1, 2], 5, (5, 5)], [(2, 1), 1, (1, 2, 5)]),
    ],
)
def test_values_of_every_type_are_within_or_without(values, within, without):
    only = Only(*values)
    assert all(value in only for value in within)
    assert not any(value in only for value in without)


def test_rows_are_of_the_three_kinds():
    for _, rows in CONSTRUCTORS.values():
        assert all(row in (READ, NO_EFFECT) or isinstance(row, Only) for row in rows.values())
