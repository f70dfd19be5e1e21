"""Weights of the PyTorch packages as a folder that `load` reads, and a run's weights as a state dict for PyTorch."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from t2i_jax import convert
from t2i_jax import runs
from t2i_jax.systems.imagen import weights as imagen_weights
from t2i_jax.convert import torch_io
from t2i_jax.data.pipeline import DataConfig
from t2i_jax.errors import UserError
from t2i_jax.models.cascade import Cascade
from t2i_jax.models.parti import Parti, PartiAndTokenizer
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.runs.recipe import Recipe
from t2i_jax.systems.imagen.task import ImagenTask
from t2i_jax.systems.parti.task import PartiTask
from t2i_jax.systems.tokenizer.task import TokenizerTask
from t2i_jax.text.stored import StoredText
from t2i_jax.text.t5 import T5Text
from t2i_jax.train.loop import TrainConfig


def import_torch(
    path: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    t5: str | None = None,
    imagen: Mapping[str, Any] | None = None,
    **fields: Any,
) -> pathlib.Path:
    """Writes a checkpoint of parti-pytorch or imagen-pytorch as a folder that `t2i_jax.load` reads; returns the folder.

    Args:
      path: .safetensors, .pt, .pth, .bin or .ckpt, with the weights of a VitVQGanVAE, of a Parti with its tokenizer or
        of an Imagen (as the packages save them), or what ImagenTrainer saved; a pickle never runs code.
      out: new folder.
      t5: the folder or hub name of the T5 whose embeddings a Parti or an Imagen was trained on; None: `generate` is given
        embeddings instead of prompts.
      imagen: arguments of the package's class, as {"image_sizes": (64, 256), "pred_objectives": "v"}, and "elucidated":
        True for an ElucidatedImagen; of a checkpoint that was made from a config those that differ.
      **fields: configuration that the weights do not tell, for a tokenizer or a Parti that stands alone.

    Raises:
      UserError: weights of another kind, fields that contradict them, a T5 of another width, or `out` exists.
    """
    out = pathlib.Path(out)
    runs.check_new(out)
    loaded = None if pathlib.Path(path).suffix == ".safetensors" else torch_io.load(path)
    if imagen_weights.is_trainers(loaded):
        return imagen_weights.write(imagen_weights.from_trainer(loaded, **fields), out, t5, imagen or {})
    model, params = convert.from_torch(path, **fields)
    if isinstance(model, Cascade):
        return imagen_weights.write(imagen_weights.untold(model, params), out, t5, imagen or {})
    if imagen is not None:
        raise UserError(f"imagen={imagen} is given for the weights of a {type(model).__name__}; leave it out.")
    if isinstance(model, VitVQGanVAE):
        if t5 is not None:
            raise UserError(f"t5={t5!r} is given for an image tokenizer, which reads no text; leave it out.")
        _write_tokenizer(model, params, out)
    elif isinstance(model, PartiAndTokenizer):
        task = PartiTask(model=model.parti, text=_text(model.parti, t5), tokenizer=model.tokenizer)
        beside = {"tokenizer": lambda folder: _write_tokenizer(model.tokenizer, params["tokenizer"], folder)}
        runs.write_system(out, _recipe(task, model.tokenizer), {"parti": {"decoder": params["parti"]}}, {}, beside)
    elif isinstance(model, Parti):
        raise UserError(
            f"weights={str(path)!r} hold a Parti without its image tokenizer, which can't paint; save the whole Parti."
        )
    else:
        raise UserError(
            f"weights={str(path)!r} hold a {type(model).__name__}, no system; give a VitVQGanVAE's or a Parti's."
        )
    return out


def export_torch(run: str | pathlib.Path, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a run's weights as the state dict that parti-pytorch or imagen-pytorch loads, and returns the file.

    A tokenizer that was trained without a discriminator, or against another one than its own, has no "discr." in it.
    A Parti with its tokenizer becomes one state dict, with the tokenizer under "vae.". A cascade as .pt becomes a
    checkpoint of ImagenTrainer, with its averages and counts of steps; as .safetensors the averaged networks alone.

    Args:
      run: folder of a run, or of an exported system. path: new .safetensors or .pt file.

    Raises:
      UserError: a network that has no PyTorch form, or `path` exists.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise UserError(f"out={str(path)!r} exists; name a new file.")
    if isinstance(runs.load_run_recipe(_folder(run)).task, ImagenTask):
        return imagen_weights.export(run, path)
    recipe, params, stats = runs.read(_folder(run))
    if isinstance(recipe.task, TokenizerTask):
        model = recipe.task.model
        if isinstance(model, VitVQGanVAE) and recipe.task.discriminator is not None:
            own = model.discriminator() if model.discr_layers else None
            kept = ("generator", "discriminator") if recipe.task.discriminator == own else ("generator",)
            params = {name: params[name] for name in kept}  # the package has no place for another discriminator
        params = _tokenizer_weights(model, params, stats)
    elif isinstance(recipe.task, PartiTask):
        model, params = recipe.task.network, params["parti"]["decoder"]
        if isinstance(model, Parti) and (pathlib.Path(run) / "tokenizer").is_dir():
            tokenizer, groups, stats = runs.read(pathlib.Path(run) / "tokenizer")
            model = PartiAndTokenizer(parti=model, tokenizer=tokenizer.task.model)
            groups = {"generator": groups["generator"]}  # the package saves no discriminator with a Parti
            params = {"parti": params, "tokenizer": _tokenizer_weights(tokenizer.task.model, groups, stats)}
    else:
        raise UserError(f"run={str(run)!r} is a {type(recipe.task).__name__}'s, which has no PyTorch form.")
    state = convert.to_state(model, jax.device_get(params))
    path.parent.mkdir(parents=True, exist_ok=True)
    half_done = path.with_name(f"partial-{path.name}")
    torch_io.write(half_done, state)
    half_done.replace(path)
    return path


def _write_tokenizer(model, weights, out):
    groups = {name: weights[name] for name in ("generator", "discriminator") if name in weights}
    runs.write_system(out, _recipe(TokenizerTask(model=model), model), groups, weights.get("stats", {}), {})


def _tokenizer_weights(model, groups, stats):
    codebook = jax.eval_shape(model.start, jax.random.key(0))  # the counts of training have no place there
    return {**groups, "stats": {name: stats[name] for name in codebook}}


def _folder(run):
    folder = pathlib.Path(run)
    if not folder.is_dir():
        raise UserError(f"run={str(run)!r} is not a folder; give one that `t2i train` or `t2i convert` made.")
    return folder


def _recipe(task, tokenizer):
    return Recipe(task=task, data=DataConfig(image_size=tokenizer.image_size), train=TrainConfig(steps=1, batch_size=1))


def _text(model, t5):
    text = StoredText(dim=model.text_embed_dim) if t5 is None else T5Text.from_directory(t5)
    if text.dim != model.text_embed_dim:
        raise UserError(f"t5={t5!r} is {text.dim} wide and the weights want {model.text_embed_dim}; give their own T5.")
    return text
