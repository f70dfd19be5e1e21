"""Weights to and from the PyTorch packages: `from_torch` and `to_torch`, one table file per
network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t2i_jax import config, values
from t2i_jax.convert import arguments, engine, state_dict, torch_io
from t2i_jax.errors import UserError, first_line
from t2i_jax.foreign import arrays as foreign

_DIGITS = 3  # of a number in the name of an array

# The file of each table and its name there. Of several that a checkpoint holds the first here is
# meant.
_HOMES = {
    "parti-pytorch": "parti.NETWORK",
    "dalle2-pytorch": "dalle2.NETWORK",
    "dalle2-pytorch prior": "dalle2_prior.PRIOR",
    "parti-pytorch with its image tokenizer": "parti.WITH_TOKENIZER",
    "muse-maskgit-pytorch": "muse.MUSE",
    "muse-maskgit-pytorch MaskGit with its image tokenizer": "muse.MASKGIT",
    "muse-maskgit-pytorch transformer": "maskgit.NETWORK",
    "dalle2-pytorch decoder": "dalle2_decoder.NETWORK",
    "imagen-pytorch": "imagen.NETWORK",
    "parti-pytorch image tokenizer": "vit_vqgan.NETWORK",
    "muse-maskgit-pytorch image tokenizer": "vqgan.NETWORK",
    "taming-transformers VQGAN": "taming_vqgan.TAMING",
    "diffusers VQModel": "taming_vqgan.DIFFUSERS",
    "open-muse VQGAN of MaskGIT": "taming_vqgan.OPEN_MUSE",
    "LlamaGen VQGAN": "taming_vqgan.LLAMAGEN",
    "maskgit VQGAN (Flax)": "flax_vqgan.NETWORK",
    "maskgit transformer (Flax)": "flax_maskgit.NETWORK",
    "muse-maskgit-pytorch token critic": "maskgit.CRITIC",
    "x-clip": "x_clip.NETWORK",
    "CLIP of OpenAI, OpenCLIP": "openai_clip.OPENAI",
    "CLIPModel of transformers": "openai_clip.TRANSFORMERS",
    "imagen-pytorch U-Net": "unet.NETWORK",
    "imagen-pytorch empty U-Net": "unet.NULL",
    "dalle2-pytorch U-Net": "decoder_unet.NETWORK",
    "dalle2-pytorch prior network": "diffusion_prior.NETWORK",
    "T5 encoder (transformers)": "t5.NETWORK",
    "VGG16 (torchvision, LPIPS)": "vgg.NETWORK",
    "Inception of FID (pytorch-fid, torch-fidelity)": "inception.NETWORK",
    "LPIPS of AlexNet (lpips)": "lpips.NETWORK",
    "DINOv2 (transformers)": "dinov2.TRANSFORMERS",
    "DINOv2 (Meta)": "dinov2.META",
}


class _Networks(Mapping[str, engine.Network]):
    """The tables by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> engine.Network:
        file, _, table = _HOMES[name].partition(".")
        return getattr(importlib.import_module(f"{__name__}.{file}"), table)

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


NETWORKS: Mapping[str, engine.Network] = _Networks()


class UnknownWeights(UserError):
    """Weights that no table of `NETWORKS` recognises."""


def from_torch(source: Any, /, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A network of ours with the weights of a PyTorch one.

    Args:
      source: a live PyTorch module, its state dict, or the path of a file with one. A module tells
        all of its settings, and so does a checkpoint that stores the arguments of its networks;
        a state dict alone tells what its shapes do.
      **fields: configuration that the weights do not determine, nor a configuration that is
        published beside their file, as a CLIP's config.json: for a Parti with its tokenizer, fields
        of either, or of one of them as tokenizer={...}; for a Muse fields of both its MaskGITs, or
        base={...}; for a cascade, fields of all its U-Nets, or unets=[{...}, {...}].

    Returns:
      The model and its parameters (float32 NumPy arrays). For an image tokenizer these are its
      weights: {"generator", "stats"} and "discriminator" where it was saved. A Parti that was saved
      with its tokenizer gives a `PartiAndTokenizer` and {"parti", "tokenizer"}, a `MaskGit` a
      `MaskGitAndTokenizer` and {"transformer", "tokenizer"}, a `Muse` a `BaseAndSuperres` and
      {"base", "superres"}, a transformer of google-research/maskgit a `MaskGitBert` and {"decoder",
      "text"}, an `Imagen` or `ElucidatedImagen` a `Cascade` and {"stage_1", ...}.

    Raises:
      UserError: weights of no known network, an unknown field, a field that the weights contradict,
        an argument that has no form here (`convert.arguments`), several networks that the weights
        could be of, or arrays that do not fit (all are listed).
    """
    read = weights(source, fields)
    return read.model, read.params


@dataclasses.dataclass(frozen=True)
class Weights:
    """A network that was converted, and what its source tells beside it.

    Attributes:
      model, params: as `from_torch` returns them.
      told: fields of the network, and arguments of the package's class that are none of it, as a
        live module or a stored configuration tells them.
      beside: arrays by their names there that the network has no place for (`Network.ignore`).
      names: the key in `NETWORKS` of the package whose names the weights have; "": not known.
    """

    model: Any
    params: dict[str, Any]
    told: Mapping[str, Any]
    beside: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: str = ""


def weights(
    source: Any,
    fields: Mapping[str, Any],
    told: Mapping[str, Any] | None = None,
    field: str = "weights",
) -> Weights:
    """The network of a live module, a state dict or a file; see `from_torch`.

    Args:
      fields: those of `from_torch`. told: what is known of the network beside its weights; None:
        what the source tells. field: what a file was given as, for messages.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        loaded = torch_io.load(path, field)
        try:
            return _converted(loaded, None, fields, told, pathlib.Path(path))
        except UserError as error:
            raise type(error)(f"{field}={path!r}: {error}") from error
    if hasattr(source, "state_dict"):
        return _converted(source.state_dict(), source, fields, told)
    return _converted(source, None, fields, told)


def kind(path: str | os.PathLike, field: str = "weights") -> type:
    """The class of the network in a file of weights, which the names of its arrays tell.

    Args:
      field: what the file was given as, for messages.

    Raises:
      UserError: no such file, or weights of no known network.
    """
    return _found(torch_io.load(os.fspath(path), field), None)[0].model


def _told(network, module, loaded):
    if network.told is None:
        return {}
    return network.stored(loaded) if module is None else network.told(module)


def to_torch(model: Any, params: Mapping[str, Any], names: str | None = None) -> dict[str, Any]:
    """The state dict (tensors) with which the PyTorch network does what `model` does with `params`.

    Two things no state dict can say: images are in `model.pixel_range`, (0, 1) in parti-pytorch;
    and a `Parti` without compat=("misaligned_bias",) counts positions otherwise than the package. A
    discriminator may be absent.

    Args:
      names: a key of `NETWORKS`, where several packages have the network under names of their own;
        None: the first of them that has it.

    Raises:
      UserError: a model that has no PyTorch form, or parameters that are not its own (all that is
        wrong is listed).
    """
    return torch_io.tensors(to_state(model, params, names))


def to_state(
    model: Any, params: Mapping[str, Any], names: str | None = None
) -> dict[str, np.ndarray]:
    """The state dict of `to_torch` as NumPy arrays, for `torch_io.write`."""
    homes = {name: one for name, one in NETWORKS.items() if type(model) is one.model}
    if homes:
        if names is not None:
            config.one_of("names", names, homes)
        fitting = (name for name, one in homes.items() if one.writes(model))
        network = homes[names or next(fitting, next(iter(homes)))]
        return engine.to_torch(
            network.table(model), params, network.shapes(model), network.optional
        )
    known = ", ".join(dict.fromkeys(network.model.__name__ for network in NETWORKS.values()))
    raise UserError(f"model={type(model).__name__} has no PyTorch form; those with one: {known}.")


def inferred(state: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of its network that a state dict tells to `from_torch`.

    Args:
      told: what is known of the network beside its weights.
    """
    network, arrays, _ = _found(state, None)
    return network.fields(network.upgrade(arrays), told)


def _converted(loaded, module, fields, told, path=None):
    """The network of ours and its parameters, from what a file or a state dict holds.

    Args:
      path: of the file; None: there is none.
    """
    network, state, module = _found(loaded, module)
    watched = engine.Watched(state)
    with _fitting(network, watched, module):
        fields = fields if path is None else {**network.configured(path), **fields}
        watched = engine.Watched(network.upgrade(watched), last=watched.last)
        known = _told(network, module, loaded) if told is None else told
        hints = module if network.told is None else {**fields, **known}
        inferred = network.fields(watched, hints)
    model = _configured(network.model, inferred, fields)
    with _fitting(network, watched, module):
        table, shapes = network.table(model), network.shapes(model)
    named = {entry.torch for entry in table}
    beside = {
        key: value
        for key, value in watched.items()
        if key not in named and key.startswith(network.ignore)
    }
    state = {key: value for key, value in watched.items() if key not in beside}
    names = next(name for name, one in NETWORKS.items() if one is network)
    return Weights(model, engine.to_ours(table, state, shapes), known, beside, names)


def _configured(model, inferred, fields):
    """The network with what was inferred and what was given; a field may also be that of a network
    inside.
    """
    known = config.fields_of(model)
    if "unets" in known:
        return _made(model, _cascade(inferred, fields))
    if parts := {name: part for name, part in inferred.items() if _is_part(part)}:
        return _made(model, _whole(model, parts, fields))
    for name, value in fields.items():
        if name not in known:
            raise UserError(_unknown(model, name, known))
        config.check(model, name, value)
        if name in inferred and not _same(model, name, inferred, value):
            raise UserError(
                f"{name}={values.shown(value)} contradicts the weights ({inferred[name]!r}); "
                "leave it out."
            )
    return _made(model, fields | inferred)


def _unknown(model, name, known):
    """The message about a field that a network does not have."""
    system, rows = _ARGUMENTS_OF.get(model.__name__, ("", {}))
    remedy = config.did_you_mean(name, known)
    if name in rows:
        remedy = f"it is an argument of the whole system, for t2i convert {system}.{name}=VALUE."
    return f"{model.__name__} has no field {name!r}; {remedy}"


# By network: the system whose class takes the arguments that are none of the network's.
_ARGUMENTS_OF: Mapping[str, tuple[str, arguments.Rows]] = {
    "Unet": ("imagen", {**arguments.IMAGEN, **arguments.ELUCIDATED_IMAGEN}),
    "PartiAndTokenizer": ("parti", arguments.PARTI),
    "MaskGitAndTokenizer": ("maskgit", arguments.MASKGIT),
}


def _is_part(value):
    """Whether a value is the pair (class, fields) of a network within another."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], type)


def _whole(model, parts, fields):
    """The networks within one.

    A field is of the first that has it, of all where they are wholes themselves; a mapping under
    the name of a part is for that one.
    """
    given: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, value in fields.items():
        if name in parts and isinstance(value, Mapping):
            continue
        homes = [part for part, (of, found) in parts.items() if name in _fields_within(of, found)]
        if not homes:
            every = {field: None for part in parts.values() for field in _fields_within(*part)}
            raise UserError(_unknown(model, name, every))
        deep = bool(_inside(parts[homes[0]][1]))
        for part in homes if deep else homes[:1]:
            given[part][name] = value
    for part in parts:
        given[part] |= fields[part] if isinstance(fields.get(part), Mapping) else {}
    return {part: _made_part(part, *parts[part], given[part]) for part in parts}


def _made_part(part, of, found, given):
    try:
        return _configured(of, found, given)
    except UserError as error:
        raise type(error)(f"{part}: {error}") from error


def _fields_within(of, found):
    """The fields of a network, or of those within it; of a cascade "unets" too."""
    fields = [field for part in _inside(found) for field in _fields_within(*part)]
    return [*fields, "unets"] if "unets" in found else fields or list(config.fields_of(of))


def _inside(found):
    """The networks within a network, each as (class, fields)."""
    several = [part for value in found.values() if isinstance(value, list) for part in value]
    return [part for part in [*found.values(), *several] if _is_part(part)]


def _same(model, name, inferred, value):
    network = next((one for one in NETWORKS.values() if one.model is model), None)
    return inferred[name] == value if network is None else network.same(name, inferred, value)


def _made(model, fields):
    """The network with these fields; what they make its class raise is a sentence."""
    try:
        return model(**fields)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the weights look like those of {model.__name__} and give no such network "
            f"({first_line(error)}); check them, and the fields given."
        ) from error


def _cascade(inferred, fields):
    """The U-Nets of a cascade and what was saved with them; fields are for all U-Nets, or for each
    as unets=[{...}, {...}], or for another network under its name.
    """
    from t2i_jax.convert import imagen

    found, each = inferred["unets"], imagen.of_each(fields, len(inferred["unets"]))
    beside, taken = {}, {"unets"}
    for name, value in inferred.items():
        if name != "unets":
            own = _fields_of_part(value, found, fields) if _is_part(value) else {}
            beside[name] = _made_part(name, *value, own) if _is_part(value) else value
            taken |= {name, *own}
    common = {name: value for name, value in fields.items() if name not in taken}
    unets = tuple(
        _configured(unet, own_fields, {**common, **own} if own_fields else {})
        for (unet, own_fields), own in zip(found, each, strict=True)
    )
    return {"unets": unets, **beside}


def _fields_of_part(part, unets, fields):
    """The fields that are given for a network beside the U-Nets: those that no U-Net has."""
    of_unets = {name for unet, _ in unets for name in config.fields_of(unet)}
    known = config.fields_of(part[0])
    return {name: v for name, v in fields.items() if name in known and name not in of_unets}


def _found(loaded, module):
    """The network that a state dict or a checkpoint holds, its arrays, and its live module."""
    flat = state_dict.flat(loaded) if isinstance(loaded, (Mapping, list, tuple)) else {}
    if not any(map(foreign.is_array, flat.values())):
        raise UnknownWeights(
            f"the weights are {foreign.named(loaded)} that holds no array by name; give a module's "
            "state_dict()."
        )
    names = state_dict.unwrapped(flat)
    values = {name: flat[was] for name, was in names.items()}
    places = list(state_dict.roots(values, _recognise))
    before = names
    names, replaced = state_dict.with_averages(names, flat, [place for place, _ in places])
    values = {name: flat[was] for name, was in names.items()}
    averages = state_dict.averaged(flat)
    found = state_dict.main(places, list(NETWORKS.values()), values, averages, replaced)
    if found is None:
        some = foreign.some(sorted(names), 3)
        raise UnknownWeights(
            f"the weights ({some}) are of no network known here; known: {', '.join(NETWORKS)}."
        )
    root, network = found
    inside = {name.removeprefix(root): was for name, was in names.items() if name.startswith(root)}
    # a perceptual network that was saved too
    inside = {name: was for name, was in inside.items() if not name.startswith(("vgg", "_vgg"))}
    if module is not None and inside:
        first = next(was for name, was in before.items() if name.startswith(root))
        module = state_dict.inner(module, first, root)
    _check_numbers(inside)
    return network, state_dict.arrays({name: flat[was] for name, was in inside.items()}), module


def _recognise(state):
    return next((one for one in NETWORKS.values() if _is(one, state)), None)


def _is(network, state):
    try:
        return network.recognise(state)
    except (AttributeError, KeyError, RuntimeError):  # what has a name of an array and is none
        return False


def _check_numbers(names):
    """Refuses layer numbers of more digits than any network has, which only damaged names hold."""
    for name in names:
        if any(part.isdecimal() and len(part) > _DIGITS for part in name.split(".")):
            raise UserError(
                f"the weights hold {name[:200]!r}, a layer that no network has; save them again."
            )


@contextlib.contextmanager
def _fitting(network, state, module):
    """A context that turns errors of the tables on arrays of unexpected shapes into one sentence
    that names the array.
    """
    like = f"the weights look like those of {network.model.__name__}"
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(
            f"{like} and have no {error.args[0] if error.args else ''!r}; they are of another "
            "release of the package, or not whole."
        ) from error
    except AttributeError as error:
        of = "the module, another release of the package or wrapped inside," if module else "they"
        raise UserError(
            f"{like}, and {of} can't be read ({error}); give its state_dict()."
        ) from error
    except Exception as error:
        last = f"{state.last[0]} and " if state.last else ""
        raise UserError(
            f"{like} and do not fit: {last}no such network can be made of them "
            f"({first_line(error)}); save them again."
        ) from error
