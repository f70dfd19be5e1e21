"""Whole systems of muse-maskgit-pytorch 0.3.5: a `MaskGit` with its image tokenizers and its
critic, and a `Muse`, which is two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t2i_jax import sharding
from t2i_jax.convert import arguments, engine, maskgit, vqgan
from t2i_jax.convert.engine import LINEAR, Entry, Network, Row, State
from t2i_jax.errors import UserError
from t2i_jax.models.maskgit import BaseAndSuperres, MaskGitAndTokenizer, SelfCritic

_TRANSFORMER, _VAE, _CRITIC = "transformer.", "vae.", "token_critic."
# Saved a second time: a network that is another's part too.
_SAME_VAE, _SAME_TRANSFORMER = "cond_vae.", "token_critic.net."
_BASE, _SUPERRES = "base_maskgit.", "superres_maskgit."


def table(model: MaskGitAndTokenizer) -> list[Row]:
    """The entries of one configuration."""
    network, vae = maskgit.table(model.transformer), vqgan.NETWORK.table(model.tokenizer)
    rows = [
        *engine.within(vae, _VAE, "tokenizer"),
        *engine.within(network, _TRANSFORMER, "transformer"),
    ]
    if model.cond_tokenizer is None:
        rows += engine.within(vae, _SAME_VAE, "tokenizer")
    else:
        cond = vqgan.NETWORK.table(model.cond_tokenizer)
        rows += engine.within(cond, _SAME_VAE, "cond_tokenizer")
    if isinstance(model.critic, SelfCritic):
        rows += engine.within(network, _SAME_TRANSFORMER, "transformer")
        rows += engine.within(_TO_PRED, _CRITIC, "critic")
    elif model.critic is not None:
        rows += engine.within(maskgit.table(model.critic), _CRITIC, "critic")
    return rows


_TO_PRED = [
    Entry("to_pred.weight", "to_pred/kernel", LINEAR),
    Entry("to_pred.bias", "to_pred/bias"),
]


def live(module: Any) -> dict[str, Any]:
    """The settings of a live `MaskGit`: by part the fields and settings of its networks, and in
    "settings" arguments of its class.

    Raises:
      UserError: an option that has no form here.
    """
    said = arguments.readable(_ARGUMENTS, module)
    arguments.check("MaskGit", arguments.MASKGIT, said)
    told = {
        "settings": {name: said[name] for name in said if name != "noise_schedule"},
        "transformer": maskgit.NETWORK.told(module.transformer),  # type: ignore[misc]
        "tokenizer": vqgan.live(module.vae),
        "cond_tokenizer": vqgan.live(module.cond_vae),
    }
    critic = module.token_critic
    if critic is not None and not hasattr(critic, "to_pred"):
        told["critic"] = maskgit.CRITIC.told(critic)  # type: ignore[misc]
    return told


def _schedule(module):
    """The name of the schedule; any function with the values of the package's has that name."""
    weight = next(module.parameters()).detach().cpu().float()
    times = weight.new_tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    schedule = module.noise_schedule
    try:
        shares = np.asarray(schedule(times))
    except Exception:  # it is the user's own code
        shares = np.zeros(())
    if np.allclose(shares, np.cos(np.pi / 2 * times.numpy()), atol=1e-6):
        return "cosine_schedule"
    return getattr(schedule, "__name__", type(schedule).__name__)


_ARGUMENTS = {
    "image_size": lambda module: module.image_size,
    "noise_schedule": _schedule,
    "cond_image_size": lambda module: module.cond_image_size,
    "cond_drop_prob": lambda module: module.cond_drop_prob,
    "self_cond_prob": lambda module: module.self_cond_prob,
    "no_mask_token_prob": lambda module: module.no_mask_token_prob,
    "critic_loss_weight": lambda module: module.critic_loss_weight,
}


def fields(state: State, told: Mapping[str, Any]) -> dict[str, Any]:
    """The class and the fields of each network of a `MaskGit`.

    The size of the images is that of the transformer's tokens.
    """
    own = maskgit.fields(engine.part(state, _TRANSFORMER), told.get("transformer", {}))
    vae = vqgan.fields(engine.part(state, _VAE), told.get("tokenizer", {}))
    if vae["codebook_size"] != own["codebook_size"]:
        raise UserError(
            f"the MaskGit has num_tokens={own['codebook_size']}, and its tokenizer codebook_size="
            f"{vae['codebook_size']}; give it a tokenizer of its codebook."
        )
    vae["image_size"] = own["fmap_size"] * 2 ** vae["layers"]
    found = {
        "transformer": (maskgit.NETWORK.model, own),
        "tokenizer": (vqgan.NETWORK.model, vae),
    }
    if (cond := engine.part(state, _SAME_VAE)) and not _same(cond, engine.part(state, _VAE)):
        small = vqgan.fields(cond, told.get("cond_tokenizer", {}))
        found["cond_tokenizer"] = (vqgan.NETWORK.model, small)
    if f"{_CRITIC}to_pred.weight" in state:
        found["critic"] = (SelfCritic, {})
    elif critic := engine.part(state, _CRITIC):
        found["critic"] = (maskgit.CRITIC.model, maskgit.fields(critic, told.get("critic", {})))
    return found


def _same(one, other):
    """Whether two state dicts are of one network."""
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def upgrade(state: State) -> dict[str, Any]:
    """A state dict of the package's first releases, or one in which of an array that is saved twice
    the other name was kept, as one of 0.3.5.
    """
    state = dict(state)
    for twice, once in ((_SAME_VAE, _VAE), (_SAME_TRANSFORMER, _TRANSFORMER)):
        if not any(key.startswith(once) for key in state):
            state |= {once + key: value for key, value in engine.part(state, twice).items()}
    for vae in (_VAE, _SAME_VAE):
        old = engine.part(state, vae)
        state = {key: value for key, value in state.items() if not key.startswith(vae)}
        state |= {vae + key: value for key, value in vqgan.NETWORK.upgrade(old).items()}
    return state


def _shapes(model):
    found = {
        "transformer": maskgit.NETWORK.shapes(model.transformer),
        "tokenizer": vqgan.NETWORK.shapes(model.tokenizer),
    }
    if model.cond_tokenizer is not None:
        found["cond_tokenizer"] = vqgan.NETWORK.shapes(model.cond_tokenizer)
    if isinstance(model.critic, SelfCritic):
        width = model.transformer.dim
        vectors = jax.ShapeDtypeStruct((1, 1, width), np.float32)
        head = jax.eval_shape(SelfCritic(parent=None).init, jax.random.key(0), vectors)
        found["critic"] = sharding.unbox(head["params"])
    elif model.critic is not None:
        found["critic"] = maskgit.CRITIC.shapes(model.critic)
    return found


def _is_maskgit(state):
    vae = any(f"{name}enc_dec.encoders.0.weight" in state for name in (_VAE, _SAME_VAE))
    names = (_TRANSFORMER, _SAME_TRANSFORMER)
    return vae and any(f"{name}token_emb.weight" in state for name in names)


def _is_muse(state):
    return all(_is_maskgit(engine.part(state, name)) for name in (_BASE, _SUPERRES))


def _muse_fields(state, told):
    of = {"base": _BASE, "superres": _SUPERRES}
    return {
        name: (MaskGitAndTokenizer, fields(engine.part(state, torch), told.get(name, {})))
        for name, torch in of.items()
    }


def _muse_live(module):
    return {"base": live(module.base_maskgit), "superres": live(module.superres_maskgit)}


def _muse_table(model):
    return [
        *engine.within(table(model.base), _BASE, "base"),
        *engine.within(table(model.superres), _SUPERRES, "superres"),
    ]


def _muse_upgrade(state):
    return {
        torch + key: value
        for torch in (_BASE, _SUPERRES)
        for key, value in upgrade(engine.part(state, torch)).items()
    }


MASKGIT = Network(
    model=MaskGitAndTokenizer,
    recognise=_is_maskgit,
    fields=fields,
    told=live,
    table=table,
    shapes=_shapes,
    ignore=tuple(f"{vae}{vgg}" for vae in (_VAE, _SAME_VAE) for vgg in ("vgg", "_vgg")),
    optional=(("tokenizer", "discriminator"), ("cond_tokenizer", "discriminator")),
    upgrade=upgrade,
)

MUSE = Network(
    model=BaseAndSuperres,
    recognise=_is_muse,
    fields=_muse_fields,
    told=_muse_live,
    table=_muse_table,
    shapes=lambda model: {"base": _shapes(model.base), "superres": _shapes(model.superres)},
    ignore=tuple(of + name for of in (_BASE, _SUPERRES) for name in MASKGIT.ignore),
    optional=tuple((of, *path) for of in ("base", "superres") for path in MASKGIT.optional),
    upgrade=_muse_upgrade,
)
