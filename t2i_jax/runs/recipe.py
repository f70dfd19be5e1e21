"""A recipe: everything that one training run is, as one frozen value. A recipe file has `get_config() -> Recipe`."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax.config import from_dict, one_of, to_dict
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.sharding import parse_mesh

JUDGES = ("shapes", "digits")
SAMPLING = ("guidance", "temperature", "top_k", "top_p", "sampler", "steps", "parallel")  # of `Evaluation`


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a run is looked at while it trains and when it is done.

    Attributes:
      judge: "shapes" or "digits": generated pictures are judged against their captions; None: they are only drawn.
      pictures: how many held-out captions are judged at the end.
      completions: how many held-out pictures of two shapes, half of each painted anew, are judged; 0: none.
      preview: how many pictures a sample grid holds, at `train.eval_every`.
      guidance, temperature, top_k, top_p, sampler, steps, parallel: as in the system's `generate`; None: its own value.
    """

    judge: str | None = None
    pictures: int = 200
    completions: int = 0
    preview: int = 16
    guidance: float | tuple[float, ...] | None = 3.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    sampler: str | tuple[str, ...] | None = None
    steps: int | tuple[int, ...] | None = None
    parallel: float | None = None

    def __post_init__(self):
        if self.judge is not None:
            one_of("evaluation.judge", self.judge, JUDGES)
        if self.pictures < 1 or self.preview < 1:
            raise UserError(f"evaluation.pictures={self.pictures} and .preview={self.preview} must be at least 1.")
        if self.completions < 0 or (self.completions and self.judge != "shapes"):
            remedy = "give judge='shapes' and a number from 1, or 0 for none"
            raise UserError(f"evaluation.completions={self.completions} with judge={self.judge!r}; {remedy}.")

    def sampling(self) -> Mapping[str, Any]:
        """The keyword arguments of `generate` that are set."""
        values = {name: getattr(self, name) for name in SAMPLING}
        return {name: value for name, value in values.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One run: what is trained, on what, how, and how it is judged.

    Attributes:
      task: `TokenizerTask`, `PartiTask`, `SuperResolutionTask` or `ImagenTask`.
      data: where pictures and captions come from.
      train: steps, batch size, optimisers, mesh.
      tokenizer: for Parti, the image tokenizer: a recipe that is trained first (in WORKDIR/tokenizer), or the path of
        a finished run; None when the data holds tokens and `task.tokenizer` is given, or for other tasks.
      perceptual: for an image tokenizer, a file with the weights of VGG16 (torchvision's) or of LPIPS with VGG, which
        judges likeness; None: no perceptual loss.
      evaluation: judging and previews.
    """

    task: Any
    data: DataConfig
    train: Any
    tokenizer: Recipe | str | None = None
    perceptual: str | None = None
    evaluation: Evaluation = Evaluation()

    def __post_init__(self):
        kind, known = type(self.task).__name__, getattr(self.task, "sampling_options", None)
        stages = len(getattr(self.task, "stages", ()))
        for name, value in self.evaluation.sampling().items() if known else ():
            if name not in known and name != "guidance":
                has = ", ".join(known)
                raise UserError(f"evaluation.{name} is given for {kind}, which samples by {has}; leave it out.")
            if isinstance(value, tuple) and len(value) != stages:
                remedy = "give one value, or one for each stage" if stages else "give one value"
                told = f"is of length {len(value)}, and {kind} has {stages} stages"
                raise UserError(f"evaluation.{name}={value} {told}; {remedy}.")


def known_types() -> Mapping[str, type]:
    """Every class that a stored configuration may name, by its tag."""
    from t2i_jax.diffusion.lowres import LowresNoise
    from t2i_jax.diffusion.noise import Ddpm, Edm
    from t2i_jax.diffusion.samplers import Churn
    from t2i_jax.models.discriminator import Discriminator
    from t2i_jax.models.parti import Parti, PartiAndTokenizer
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.models.stylegan_discriminator import StyleDiscriminator
    from t2i_jax.models.super_resolution import SuperResolution
    from t2i_jax.models.unet import NullUnet, Unet
    from t2i_jax.models.vgg import Vgg16
    from t2i_jax.models.vit_vqgan import VitVQGanVAE
    from t2i_jax.models.vit_vqgan_paper import ViTVQGAN
    from t2i_jax.systems.imagen.task import ImagenTask
    from t2i_jax.systems.cascade.stage import Stage
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.systems.super_resolution.task import SuperResolutionTask
    from t2i_jax.systems.tokenizer.task import TokenizerTask
    from t2i_jax.text.learned import LearnedText
    from t2i_jax.text.stored import StoredText
    from t2i_jax.text.t5 import T5Text
    from t2i_jax.text.t5_encoder import T5Encoder
    from t2i_jax.train.loop import TrainConfig
    from t2i_jax.train.optim import OptimConfig

    classes = (
        Recipe, Evaluation, DataConfig, TrainConfig, OptimConfig, TokenizerTask, PartiTask, SuperResolutionTask,
        ImagenTask, Stage, Ddpm, Edm, LowresNoise, Churn, VitVQGanVAE, ViTVQGAN, Discriminator, StyleDiscriminator, Vgg16,
        Parti, PartiAndTokenizer, PartiTransformer, SuperResolution, Unet, NullUnet, LearnedText, StoredText, T5Text,
        T5Encoder,
    )  # fmt: skip
    return {cls.__name__: cls for cls in classes}


def load_recipe(path: str | pathlib.Path) -> Recipe:
    """Runs a recipe file and returns its `get_config()`.

    Raises:
      UserError: no such file, no `get_config`, or a result that is not a Recipe.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"config={str(path)!r} is not a file; give a recipe such as configs/parti/shapes.py.")
    spec = importlib.util.spec_from_file_location(f"t2i_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config={str(path)!r} is not a Python file; a recipe ends in .py and has get_config().")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"config={str(path)!r} has no get_config(); add one that returns a t2i_jax Recipe.")
    recipe = module.get_config()
    if not isinstance(recipe, Recipe):
        raise UserError(f"config={str(path)!r}: get_config() returned {type(recipe).__name__}; return a Recipe.")
    return recipe


def with_mesh(recipe: Recipe, mesh: str | None) -> Recipe:
    """The recipe on another mesh, "data=2,fsdp=4", its tokenizer's recipe too; None: as it is."""
    if mesh is None:
        return recipe
    train = dataclasses.replace(recipe.train, mesh=parse_mesh(mesh))
    first = with_mesh(recipe.tokenizer, mesh) if isinstance(recipe.tokenizer, Recipe) else recipe.tokenizer
    return dataclasses.replace(recipe, train=train, tokenizer=first)


def recipe_to_dict(recipe: Recipe) -> Mapping[str, Any]:
    """The JSON form that every checkpoint holds."""
    return to_dict(recipe)


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """The recipe that a checkpoint holds."""
    return from_dict(data, known_types(), "recipe")
