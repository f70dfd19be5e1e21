"""Every argument of imagen-pytorch's cascades and their trainer is honoured, or refused by its
name; see test_arguments.py.
"""

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import arguments
from t2i_jax.convert import imagen as imagen_tables
from t2i_jax.errors import UserError
from t2i_jax.systems.imagen import weights as imagen_weights
from t2i_jax.systems.imported import TorchFile
from tests.parity.reference import load

imagen_pytorch = load("imagen_pytorch")
torch = pytest.importorskip("torch")
package = load("imagen_pytorch.imagen_pytorch")
configs = load("imagen_pytorch.configs")

SIZES = (8, 16)
TINY = dict(
    dim=8, dim_mults=(1,), attn_heads=2, attn_dim_head=8, text_embed_dim=6, max_text_len=4,
    layer_attns=False, layer_cross_attns=False, attend_at_middle=False, num_resnet_blocks=0,
    use_global_context_attn=False, init_cross_embed=False,
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
    torch.save(video.state_dict(), path)
    with pytest.raises(UserError, match="unets.0 is a U-Net of videos .* give a cascade of images"):
        cascade_of(path, {}, {"image_sizes": 8})
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
