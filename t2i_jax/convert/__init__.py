"""Weights to and from the PyTorch packages: `from_torch` and `to_torch`, one table file per
network.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import config
from t2i_jax.convert import engine, imagen, parti, t5, torch_io, unet, vgg, vit_vqgan
from t2i_jax.errors import UserError

# In the order in which a state dict is tried. A table file offers `NETWORK`, an `engine.Network`.
NETWORKS: dict[str, engine.Network] = {
    "T5 encoder (transformers)": t5.NETWORK,
    "parti-pytorch": parti.NETWORK,
    "parti-pytorch with its image tokenizer": parti.WITH_TOKENIZER,
    "parti-pytorch image tokenizer": vit_vqgan.NETWORK,
    "VGG16 (torchvision, LPIPS)": vgg.NETWORK,
    "imagen-pytorch": imagen.NETWORK,
    "imagen-pytorch U-Net": unet.NETWORK,
    "imagen-pytorch empty U-Net": unet.NULL,
}


class UnknownWeights(UserError):
    """Weights that no table of `NETWORKS` recognises."""


def from_torch(source: Any, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A network of ours with the weights of a PyTorch one.

    Args:
      source: a live PyTorch module, its state dict, or the path of a file with one.
      **fields: configuration that the weights do not determine: for a Parti with its tokenizer,
        fields of either; for a cascade, fields of all its U-Nets, or unets=[{...}, {...}].

    Returns:
      The model and its parameters (float32 NumPy arrays). For an image tokenizer these are its
      weights: {"generator", "stats"} and "discriminator" where it was saved. A Parti that was saved
      with its tokenizer gives a `PartiAndTokenizer` and {"parti", "tokenizer"}, an `Imagen` or
      `ElucidatedImagen` a `Cascade` and {"stage_1", ...}.

    Raises:
      UserError: weights of no known network, an unknown field, a field that the weights contradict,
        or arrays that do not fit (all are listed).
    """
    module = source if hasattr(source, "state_dict") else None
    if isinstance(source, (str, pathlib.Path)):
        state = torch_io.read(source)
    else:
        state = source.state_dict() if module is not None else source
    state = torch_io.arrays(engine.strip(state))
    network = _recognised(state)
    state = network.upgrade(state)
    try:
        inferred = network.fields(state, module)
    except KeyError as error:
        raise UserError(
            f"the weights look like those of {network.model.__name__} and have no "
            f"{error.args[0]!r}; they are of another release of the package, or not whole."
        ) from error
    model = _configured(network.model, inferred, fields)
    table = network.table(model)
    named = {entry.torch for entry in table}
    state = {
        key: value
        for key, value in state.items()
        if key in named or not key.startswith(network.ignore)
    }
    return model, engine.to_ours(table, state, network.shapes(model))


def to_torch(model: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict (tensors) with which the PyTorch network does what `model` does with `params`.

    Two things no state dict can say: images are in `model.pixel_range`, (0, 1) in parti-pytorch;
    and a `Parti` without compat=("misaligned_bias",) counts positions otherwise than the package. A
    discriminator may be absent.

    Raises:
      UserError: a model that has no PyTorch form, or parameters that are not its own (all that is
        wrong is listed).
    """
    return torch_io.tensors(to_state(model, params))


def to_state(model: Any, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of `to_torch` as NumPy arrays, for `torch_io.write`."""
    for network in NETWORKS.values():
        if type(model) is network.model:
            return engine.to_torch(
                network.table(model), params, network.shapes(model), network.optional
            )
    names = ", ".join(network.model.__name__ for network in NETWORKS.values())
    raise UserError(f"model={type(model).__name__} has no PyTorch form; those with one: {names}.")


def _configured(model, inferred, fields):
    """The network with what was inferred and what was given; a field may also be that of a network
    inside.
    """
    known = config.fields_of(model)
    if "unets" in known:
        return model(_cascade(inferred["unets"], fields))
    inside = {name: value for name, value in inferred.items() if dataclasses.is_dataclass(value)}
    for name, value in fields.items():
        home = next((part for part in inside if name in config.fields_of(type(inside[part]))), None)
        if name not in known and home is None:
            every = [
                *known,
                *(field for part in inside.values() for field in config.fields_of(type(part))),
            ]
            raise UserError(
                f"{model.__name__} has no field {name!r}; {config.did_you_mean(name, every)}"
            )
        if name in inferred and inferred[name] != value:
            raise UserError(
                f"{name}={value!r} contradicts the weights ({inferred[name]!r}); leave it out."
            )
        if name not in known:
            inside[home] = config.override(inside[home], [f"{name}={value!r}"])
            fields = {key: other for key, other in fields.items() if key != name}
    return model(**(inferred | inside | fields))


def _cascade(found, fields):
    """The U-Nets of a cascade; fields are for all of them, or for each as unets=[{...}, {...}]."""
    each = fields.get("unets", [{}] * len(found))
    if len(each) != len(found):
        raise UserError(
            f"unets has {len(each)} entries for {len(found)} U-Nets; give one for each, {{}} where "
            "none."
        )
    common = {name: value for name, value in fields.items() if name != "unets"}
    return tuple(
        _configured(unet, inferred, {**common, **own} if inferred else {})
        for (unet, inferred), own in zip(found, each, strict=True)
    )


def _recognised(state):
    for network in NETWORKS.values():
        if network.recognise(state):
            return network
    some = ", ".join(sorted(state)[:3])
    raise UnknownWeights(
        f"the weights ({some}, ...) are of no network known here; known: {', '.join(NETWORKS)}."
    )
