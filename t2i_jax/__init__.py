"""Text-to-image models in JAX: train, sample, convert.

>>> import t2i_jax as t2i
>>> system = t2i.load("runs/quickstart")                                          # doctest: +SKIP
>>> images = system.generate(["a red circle above a blue square"], seed=0)        # doctest: +SKIP

Importing this package starts no device and pulls in neither torch nor TensorFlow.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The names a user types, and where they live; imported on first use. Those of a system are in its
# own package.
_HOMES = {
    "Evaluation": "t2i_jax.eval.evaluation",
    "Recipe": "t2i_jax.runs.recipe",
    "Init": "t2i_jax.runs.init",
    "DataConfig": "t2i_jax.data.pipeline",
    "TrainConfig": "t2i_jax.train.config",
    "OptimConfig": "t2i_jax.train.optim",
    "UserError": "t2i_jax.errors",
    "load": "t2i_jax.runs",
    "VitVQGanVAE": "t2i_jax.models.vit_vqgan",
    "VQGanVAE": "t2i_jax.models.vqgan",
    "ViTVQGAN": "t2i_jax.models.vit_vqgan_paper",
    "VQGAN": "t2i_jax.models.taming_vqgan",
    "Discriminator": "t2i_jax.models.discriminator",
    "PatchDiscriminator": "t2i_jax.models.patch_discriminator",
    "StyleDiscriminator": "t2i_jax.models.stylegan_discriminator",
    "Vgg16": "t2i_jax.models.vgg",
    "Parti": "t2i_jax.models.parti",
    "PartiAndTokenizer": "t2i_jax.models.parti",
    "PartiTransformer": "t2i_jax.models.parti_transformer",
    "MaskGitTransformer": "t2i_jax.models.maskgit",
    "MaskGitBert": "t2i_jax.models.maskgit_bert",
    "TokenCritic": "t2i_jax.models.maskgit",
    "SelfCritic": "t2i_jax.models.maskgit",
    "MaskGitAndTokenizer": "t2i_jax.models.maskgit",
    "BaseAndSuperres": "t2i_jax.models.maskgit",
    "SuperResolution": "t2i_jax.models.super_resolution",
    "CLIP": "t2i_jax.models.clip",
    "OpenAIClip": "t2i_jax.models.openai_clip",
    "Unet": "t2i_jax.models.unet",
    "BaseUnet64": "t2i_jax.models.unet",
    "SRUnet256": "t2i_jax.models.unet",
    "SRUnet1024": "t2i_jax.models.unet",
    "NullUnet": "t2i_jax.models.unet",
    "DecoderUnet": "t2i_jax.models.decoder_unet",
    "DecoderUnet64": "t2i_jax.models.decoder_unet",
    "DecoderUnet256": "t2i_jax.models.decoder_unet",
    "DecoderUnet1024": "t2i_jax.models.decoder_unet",
    "DiffusionPriorNetwork": "t2i_jax.models.diffusion_prior",
    "ClassLabels": "t2i_jax.text.classes",
    "CaptionIds": "t2i_jax.text.caption_ids",
    "LearnedText": "t2i_jax.text.learned",
    "StoredText": "t2i_jax.text.stored",
    "T5Text": "t2i_jax.text.t5",
    "T5Encoder": "t2i_jax.text.t5_encoder",
    "Ddpm": "t2i_jax.diffusion.noise",
    "DiscreteDdpm": "t2i_jax.diffusion.discrete",
    "Edm": "t2i_jax.diffusion.noise",
    "LowresNoise": "t2i_jax.diffusion.lowres",
    "LowresBlur": "t2i_jax.diffusion.blur",
    "LearnedVariance": "t2i_jax.diffusion.learned_variance",
    "Churn": "t2i_jax.diffusion.samplers",
    "SystemTask": "t2i_jax.systems.base",
    "NoOptions": "t2i_jax.systems.base",
}

if TYPE_CHECKING:
    from t2i_jax.runs import load as load


def homes() -> dict[str, str]:
    """The public names, those of every registered system among them, and the modules that hold
    them.
    """
    # `from t2i_jax import` would ask this module for it
    systems = importlib.import_module("t2i_jax.systems")
    return {**_HOMES, **systems.names()}


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and not _is_module(name):  # Python asks for many of those
        home = homes().get(name)
        if home is not None:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 't2i_jax' has no attribute {name!r}")


def _is_module(name):
    """Whether a name is a module of this package, for which `from t2i_jax import` asks here
    first.
    """
    return importlib.util.find_spec(f"{__name__}.{name}") is not None


def __dir__() -> list[str]:
    return sorted([*homes(), "__version__"])
