"""DALLE2 of dalle2-pytorch 1.15.6: a prior and a decoder saved as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i_jax.convert import dalle2_decoder, dalle2_prior, engine
from t2i_jax.convert.engine import Network, State
from t2i_jax.models.dalle2 import PriorAndDecoder

_PARTS = {"prior": dalle2_prior.PRIOR, "decoder": dalle2_decoder.NETWORK}


def _fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The class and the fields of each part.

    Args:
      told: "prior" and "decoder", of each; all others are for both.
    """
    both = {name: value for name, value in told.items() if name not in _PARTS}
    return {
        name: (part.model, part.fields(engine.part(state, f"{name}."), both | told.get(name, {})))
        for name, part in _PARTS.items()
    }


def _upgrade(state: State) -> State:
    """The state dict with names of today. Where prior and decoder share a CLIP, `save_model` of
    safetensors stores it under the decoder alone.
    """
    for name, part in _PARTS.items():
        state = engine.upgraded(state, f"{name}.", part.upgrade)
    if not engine.part(state, "prior.clip."):
        shared = engine.part(state, "decoder.clip.")
        state = dict(state) | {f"prior.clip.{name}": value for name, value in shared.items()}
    return state


def live(module: Any) -> dict[str, Any]:
    """The settings of a live `DALLE2` by part; "settings" has arguments of its class.

    Raises:
      UserError: an option that has no form here.
    """
    return {
        "settings": {"prior_num_samples": module.prior_num_samples},
        "prior": dalle2_prior.live(module.prior),
        "decoder": dalle2_decoder.live(module.decoder),
    }


NETWORK = Network(
    model=PriorAndDecoder,
    recognise=lambda state: all(
        part.recognise(engine.part(state, f"{name}.")) for name, part in _PARTS.items()
    ),
    fields=_fields,
    told=live,
    table=lambda model: [
        row
        for name, part in _PARTS.items()
        for row in engine.within(part.table(getattr(model, name)), f"{name}.", name)
    ],
    shapes=lambda model: {name: part.shapes(getattr(model, name)) for name, part in _PARTS.items()},
    ignore=tuple(f"{name}.{own}" for name, part in _PARTS.items() for own in part.ignore),
    upgrade=_upgrade,
)
