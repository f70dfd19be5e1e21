"""Weights to and from the PyTorch packages: `from_torch` and `to_torch`, one table file per network."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t2i_jax import config
from t2i_jax.convert import engine, parti, t5, torch_io, unet, vgg, vit_vqgan
from t2i_jax.errors import UserError

# In the order in which a state dict is tried. A table file offers `NETWORK`, an `engine.Network`.
NETWORKS: dict[str, engine.Network] = {
    "T5 encoder (transformers)": t5.NETWORK,
    "parti-pytorch": parti.NETWORK,
    "parti-pytorch with its image tokenizer": parti.WITH_TOKENIZER,
    "parti-pytorch image tokenizer": vit_vqgan.NETWORK,
    "VGG16 (torchvision, LPIPS)": vgg.NETWORK,
    "imagen-pytorch U-Net": unet.NETWORK,
    "imagen-pytorch empty U-Net": unet.NULL,
}


def from_torch(source: Any, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """A network of ours with the weights of a PyTorch one.

    Args:
      source: a live PyTorch module, its state dict, or the path of a file with one.
      **fields: configuration that the weights do not tell.

    Returns:
      The model and its parameters (float32 NumPy arrays). For an image tokenizer these are its weights:
      {"generator", "stats"} and "discriminator" where it was saved. A Parti that was saved with its tokenizer gives a
      `PartiAndTokenizer` and {"parti", "tokenizer"}.

    Raises:
      UserError: weights of no known network, an unknown field, a field that the weights contradict, or arrays that do
        not fit (all are listed).
    """
    module = source if hasattr(source, "state_dict") else None
    if isinstance(source, (str, pathlib.Path)):
        state = torch_io.read(source)
    else:
        state = source.state_dict() if module is not None else source
    state = torch_io.arrays(engine.strip(state))
    network = _recognised(state)
    known = config.fields_of(network.model)
    inferred = network.fields(state, module)
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"{network.model.__name__} has no field {name!r}; {config.did_you_mean(name, known)}")
        if name in inferred and inferred[name] != value:
            raise UserError(f"{name}={value!r} contradicts the weights ({inferred[name]!r}); leave it out.")
    model = network.model(**(inferred | fields))
    table = network.table(model)
    named = {entry.torch for entry in table}
    state = {key: value for key, value in state.items() if key in named or not key.startswith(network.ignore)}
    return model, engine.to_ours(table, state, network.shapes(model))


def to_torch(model: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict (tensors) with which the PyTorch network does what `model` does with `params`.

    Raises:
      UserError: a model that has no PyTorch form, or parameters that are not its own.
    """
    return torch_io.tensors(to_state(model, params))


def to_state(model: Any, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """As `to_torch`, as NumPy arrays: for `torch_io.write`."""
    for network in NETWORKS.values():
        if type(model) is network.model:
            return engine.to_torch(network.table(model), params)
    names = ", ".join(network.model.__name__ for network in NETWORKS.values())
    raise UserError(f"model={type(model).__name__} has no PyTorch form; those with one: {names}.")


def _recognised(state):
    for network in NETWORKS.values():
        if network.recognise(state):
            return network
    some = ", ".join(sorted(state)[:3])
    raise UserError(f"the weights ({some}, ...) are of no network known here; known: {', '.join(NETWORKS)}.")
