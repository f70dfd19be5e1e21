"""DALLE2 of dalle2-pytorch: a prior and a decoder saved as one."""

from __future__ import annotations

import pathlib
from typing import Any

from t2i_jax import convert
from t2i_jax.convert import Weights, engine, torch_io
from t2i_jax.convert.dalle2_decoder import DecoderCheckpoint
from t2i_jax.errors import UserError
from t2i_jax.models.dalle2 import PriorAndDecoder
from t2i_jax.systems.clip import weights as clips
from t2i_jax.systems.dalle2.options import DALLE2Options
from t2i_jax.systems.dalle2.task import DALLE2Task
from t2i_jax.systems.decoder import weights as decoders
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.notices import quiet
from t2i_jax.systems.prior import weights as priors
from t2i_jax.systems.prior.options import COMPAT


def from_torch(file: TorchFile) -> Imported | None:
    """The DALL-E 2 of a file; None where it holds another network.

    Raises:
      UserError: arguments that do not fit the weights, or weights without their CLIP.
    """
    model: Any = file.network
    if not isinstance(model, PriorAndDecoder):
        return None
    if model.prior.clip is None:
        raise UserError(
            "the weights hold no CLIP, and captions are read by one; give the prior and the "
            "decoder by themselves, and the run of their CLIP as a part."
        )
    given = {**file.told.get("settings", {}), **file.options("dalle2")}
    settings = {
        name: {**file.told.get(name, {}).get("settings", {}), **file.options(name)}
        for name in ("prior", "decoder")
    }
    shown = decoders.as_shown(model.decoder, settings["decoder"])
    read, clip = {}, {}
    for name, network in (("prior", model.prior), ("decoder", shown)):
        told, beside = file.told.get(name, {}), engine.part(file.beside, f"{name}.")
        read[name] = Weights(network, file.params[name], told, beside)
        clip[name] = clips.within_file(file, read[name])
    prior = priors.imported(model.prior, read["prior"].params, settings["prior"], clip["prior"])
    count = (1,) * len(model.decoder.unets)  # every stage counts as trained
    checkpoint = DecoderCheckpoint(shown, read["decoder"].params, None, count)
    decoder = decoders.imported(checkpoint, settings["decoder"], clip["decoder"])
    for name in given:
        if name not in ("prior_num_samples",):
            raise UserError(f"dalle2.{name} is no argument of DALLE2; leave it out.")
    options = DALLE2Options(
        guidance=1.0,
        compat=COMPAT,
        prior_sampler=prior.options.sampler,
        prior_steps=prior.options.steps,
        prior_num_samples=given.get("prior_num_samples", 2),
        prior_compat=None if prior.options.compat == COMPAT else prior.options.compat,
    )
    # the CLIP that images are shown to is the decoder's, where it has one
    parts = {**prior.parts, **decoder.parts, "prior": prior, "decoder": decoder}
    return Imported("DALLE2", DALLE2Task(), {}, {}, decoder.image_size, parts, options)


def to_torch(contents: Any, path: pathlib.Path) -> None:
    """Writes a run's averaged weights as the state dict of a `DALLE2`.

    Raises:
      UserError: a prior or a decoder that the package has no place for.
    """
    prior, of_prior = priors.exported(contents.parts["prior"])
    with quiet():  # what there is to tell of CLIP
        decoder, of_decoder = decoders.exported(contents.parts["decoder"])
    params = {"prior": of_prior, "decoder": of_decoder}
    state = convert.to_state(PriorAndDecoder(prior, decoder), params)
    clips.tell_untold(
        priors.untold_fields(prior, state, "prior.")
        | decoders.untold_fields(decoder, state, "decoder.")
    )
    for name in params:
        state |= clips.ssl_within(contents.parts[name], state, f"{name}.")
    torch_io.write(path, state)
