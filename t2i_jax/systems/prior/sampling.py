"""The compiled program with which a prior makes image embeddings of captions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from t2i_jax import sharding
from t2i_jax.compiler import Program
from t2i_jax.diffusion import dalle2_ddim, samplers, threshold
from t2i_jax.diffusion.denoiser import Denoise, Net, denoiser
from t2i_jax.diffusion.draws import NoiseSource, gaussian
from t2i_jax.diffusion.guidance import for_rows, guide
from t2i_jax.models.image_text import TextEmbedding, unit
from t2i_jax.systems.prior.options import COMPAT
from t2i_jax.types import Array, Key, Params

if TYPE_CHECKING:
    from t2i_jax.systems.prior.task import PriorTask


@dataclasses.dataclass(frozen=True)
class PriorSampling:
    """The settings of a prior's sampling run, for which its program is compiled.

    Attributes:
      sampler, steps, compat: as in `PriorOptions`. guided: whether there is guidance at all.
    """

    sampler: str = "dpm_solver"
    steps: int = 32
    guided: bool = False
    compat: str | None = None

    @property
    def walks_as_there(self) -> bool:
        """Whether the sampler is the DDIM of dalle2-pytorch, see `diffusion.dalle2_ddim`."""
        return self.compat is not None and self.sampler == "ddim"


def bound(
    network: Any,
    params: Params,
    text: TextEmbedding,
    *,
    keep_text_B: Array | None = None,
    keep_image_B: Array | None = None,
    null_sees_image: bool = True,
    dropout: Key | None = None,
) -> Net:
    """The network with its captions as a function of noised embeddings, for training and guidance.

    Args:
      text: of the captions; `encodings_BLE` is None where the network is not given any.
      keep_text_B, keep_image_B: False in rows that lose their caption, or the noised embedding;
        None: all True.
      null_sees_image: whether rows that guidance takes the caption from still see the noised
        embedding.
      dropout: in training.
    """

    def net(x_BD, condition_B, keep_B=None, *last):
        rows = x_BD.shape[0]
        given = for_rows(tuple(part for part in text if part is not None), rows)
        embed, encodings, mask = (*given, None, None)[:3]
        own = keep_text_B if keep_B is None else keep_B
        image = keep_image_B if keep_B is None or null_sees_image else keep_B
        return network.apply(
            {"params": params}, x_BD, condition_B, embed, encodings, mask, own, image, *last,
            deterministic=dropout is None, rngs={} if dropout is None else {"dropout": dropout},
        )  # fmt: skip

    return net


def on_sphere(function: Callable[..., Array], scale: float) -> Callable[..., Array]:
    """The function whose vectors are brought to this length."""
    return lambda *args: scale * unit(function(*args))


def run(
    task: PriorTask, net: Net, sampling: PriorSampling, rows: int, draw: NoiseSource, scale: Any
) -> Array:
    """Image embeddings (rows, D), as long as CLIP's.

    Args:
      net: of `bound`. draw: the noise. scale: of guidance.
    """
    noise, length = task.noise, task.length
    levels = levels_of(noise, sampling)
    x = samplers.start(noise, levels, draw, (rows, task.network.width))
    if "init" in task.on_sphere:
        x = length * unit(x)
    step = _solver(denoise(task, net, sampling, scale), noise, sampling)
    x = samplers.sample(step, x, levels, draw)
    if "final" in task.on_sphere:
        x = length * unit(x)
    return x / length


def levels_of(noise: Any, sampling: PriorSampling) -> Array:
    """The falling levels of a sampling run.

    Raises:
      UserError: a number of steps that the noise, or a package's walk, does not have.
    """
    if sampling.walks_as_there:
        return dalle2_ddim.prior_levels(noise.timesteps, sampling.steps)
    return noise.levels(sampling.steps)


def denoise(task: PriorTask, net: Net, sampling: PriorSampling, scale: Any) -> Denoise:
    """The guided network as a function to clean embeddings of the length `task.length`."""
    guided = guide(net, scale) if sampling.guided else net
    found = denoiser(guided, task.noise, self_conditioned=task.model.self_cond)
    if sampling.compat == COMPAT and getattr(task.noise, "objective", None) != "x_start":
        # Reference quirk: embeddings of this length have coordinates well beyond 1.
        found = threshold.clamp(found)
    return on_sphere(found, task.length) if "sampling" in task.on_sphere else found


def _solver(denoise, noise, sampling):
    if sampling.walks_as_there:
        return dalle2_ddim.prior_step(denoise, noise)
    return {
        "ancestral": samplers.ancestral,
        "ddim": samplers.ddim,
        "heun": samplers.heun,
        "dpm_solver": samplers.dpm_solver,
    }[sampling.sampler](denoise, noise)


@functools.partial(Program, static_argnames=("task", "sampling"))
def generate(
    params: Params,
    frozen: Mapping[str, Any],
    prompt: Mapping[str, Array],
    keys_B: Key,
    *,
    task: PriorTask,
    sampling: PriorSampling,
    guidance: Array | float = 1.0,
) -> tuple[Array, Array]:
    """Image embeddings (B, D), and their cosines (B,) with the embeddings of the captions.

    One compiled program per task, sampling and shapes.

    Args:
      params: of the group "prior". frozen: as in training.
      prompt: the entries of a batch that tell the captions: token ids, or embeddings.
      keys_B: one key per embedding. guidance: one scale.
    """
    text = task.text_of(frozen, prompt)
    net = bound(
        task.network, params, text,
        null_sees_image=sampling.compat is None,
    )  # fmt: skip
    made = run(task, net, sampling, keys_B.shape[0], gaussian(keys_B), guidance)
    cosine_B = jnp.sum(unit(made) * unit(text.embed_BD), axis=-1)
    return sharding.constrain(made, None, None), sharding.constrain(cosine_B, None)
