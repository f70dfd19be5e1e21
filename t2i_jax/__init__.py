"""Text-to-image models in JAX: train, sample, convert.

>>> import t2i_jax as t2i
>>> system = t2i.load("runs/quickstart")                                          # doctest: +SKIP
>>> images = system.generate(["a red circle above a blue square"], seed=0)        # doctest: +SKIP

Importing this package starts no device and pulls in neither torch nor TensorFlow.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# The names a user types, and where they live; imported on first use.
_HOMES = {
    "Evaluation": "t2i_jax.runs.recipe",
    "Recipe": "t2i_jax.runs.recipe",
    "DataConfig": "t2i_jax.data.pipeline",
    "TrainConfig": "t2i_jax.train.loop",
    "OptimConfig": "t2i_jax.train.optim",
    "UserError": "t2i_jax.errors",
    "load": "t2i_jax.runs",
    "VitVQGanVAE": "t2i_jax.models.vit_vqgan",
    "ViTVQGAN": "t2i_jax.models.vit_vqgan_paper",
    "Parti": "t2i_jax.models.parti",
    "PartiTransformer": "t2i_jax.models.parti_transformer",
    "LearnedText": "t2i_jax.text.learned",
    "StoredText": "t2i_jax.text.stored",
    "T5Text": "t2i_jax.text.t5",
    "TokenizerTask": "t2i_jax.systems.tokenizer.task",
    "PartiTask": "t2i_jax.systems.parti.task",
    "SuperResolution": "t2i_jax.models.super_resolution",
    "SuperResolutionTask": "t2i_jax.systems.super_resolution.task",
    "Unet": "t2i_jax.models.unet",
    "BaseUnet64": "t2i_jax.models.unet",
    "SRUnet256": "t2i_jax.models.unet",
    "SRUnet1024": "t2i_jax.models.unet",
    "NullUnet": "t2i_jax.models.unet",
    "Ddpm": "t2i_jax.diffusion.noise",
    "Edm": "t2i_jax.diffusion.noise",
    "LowresNoise": "t2i_jax.diffusion.lowres",
    "Churn": "t2i_jax.diffusion.samplers",
    "Stage": "t2i_jax.systems.cascade.stage",
    "ImagenTask": "t2i_jax.systems.imagen.task",
    "Imagen": "t2i_jax.systems.imagen.classes",
    "ElucidatedImagen": "t2i_jax.systems.imagen.classes",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from t2i_jax.runs import load as load


def __getattr__(name):
    import importlib

    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 't2i_jax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
