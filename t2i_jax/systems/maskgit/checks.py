"""Checks of a `MaskGitTask`, before anything compiles, and the sizes that follow from its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2i_jax import config
from t2i_jax.errors import UserError
from t2i_jax.models.maskgit import MaskGitTransformer, SelfCritic, TokenCritic
from t2i_jax.models.maskgit_bert import MaskGitBert
from t2i_jax.systems import stored_tokens
from t2i_jax.systems.maskgit.options import MaskGitOptions

if TYPE_CHECKING:
    from t2i_jax.systems.maskgit.task import MaskGitTask


def check(task: MaskGitTask) -> None:
    """Refuses fields that no MaskGIT has, and what contradicts the parts as far as they are known.

    Raises:
      UserError: the field, its value and a remedy.
    """
    shares = ("cond_drop_prob", "label_smoothing", "no_mask_token_prob", "self_cond_prob")
    for field in (*shares, "least_masked"):
        if not 0 <= getattr(task, field) <= 1:
            raise UserError(f"{field}={getattr(task, field)} is outside [0, 1]; try 0.1.")
    if not task.critic_loss_weight >= 0:
        raise UserError(
            f"critic_loss_weight={task.critic_loss_weight} is below 0; try 1.0, or 0 for none."
        )
    _check_networks(task.model, task.critic)
    _check_sizes(task)
    for name in task.trains if task.trains is not None else ():
        config.one_of("trains", name, task.groups)
    if task.trains == ():
        raise UserError("trains=() trains nothing; name groups, or None for all.")


def sized(task: MaskGitTask, name: str, model: Any) -> Any:
    """A network with the sizes that follow from the tokenizers and the text encoder.

    Raises:
      UserError: a size of its own that contradicts them, or one that nothing says.
    """
    own, small = task.tokenizers
    wanted = {"text_embed_dim": (model.dim if task.text is None else task.text.dim, "the text")}
    if own is not None:
        wanted |= {
            "fmap_size": (own.grid[0], "the tokenizer's grid"),
            "codebook_size": (own.codebook_size, "the tokenizer's codebook_size"),
        }
    if small is not None:
        wanted["cond_fmap_size"] = (small.grid[0], "the small images' grid")
    for field, (value, source) in wanted.items():
        if field not in config.fields_of(type(model)):
            raise UserError(
                f"{name}={type(model).__name__} takes no {field}, and {source} has some; give "
                "a MaskGitTransformer."
            )
        if getattr(model, field) not in (None, value):
            raise UserError(
                f"{name}.{field}={getattr(model, field)} is not {source}={value}; leave it out "
                "or change it."
            )
    sized = model.clone(parent=None, **{field: value for field, (value, _) in wanted.items()})
    for field in ("fmap_size", "codebook_size"):
        if getattr(sized, field) is None:
            raise UserError(
                f"{name}.{field}=None is not known without a tokenizer; give it {field}."
            )
    return sized


def check_options(task: MaskGitTask, options: MaskGitOptions) -> None:
    """Refuses options of a critic that was not trained, of guidance without texts, and those
    for which the network was not trained.
    """
    if task.critic is None and options.critic:
        raise UserError(
            "critic=True, and none was trained; leave it out, or train the task with a "
            "TokenCritic or a SelfCritic."
        )
    by_critic = task.has_critic_for(options)
    if options.critic_noise is not None and not by_critic:
        raise UserError(
            f"critic_noise={options.critic_noise} is noise on the scores of a critic, and "
            "none is used; leave it out, or sample with critic=True."
        )
    if options.choice_temperature and by_critic:
        raise UserError(
            f"choice_temperature={options.choice_temperature} is noise on the confidence, and "
            "a critic says which tokens stay; give critic_noise, or critic=False."
        )
    by_confidence = options.order == "confidence" and not by_critic
    if options.remask and by_confidence and not task.no_mask_token_prob:
        raise UserError(
            "remask=True asks the network about tokens that it sees, and no_mask_token_prob=0 "
            "of the task never trained it to predict them; train it with 0.1, or use a critic."
        )
    if task.text is None and options.guidance not in (1, MaskGitOptions.guidance):
        raise UserError(
            f"guidance={options.guidance} is towards a caption, and this system was trained "
            "without texts; leave it out."
        )
    if task.tokenizers[0] is not None:
        task.windows(options)  # refuses sizes


def _check_networks(model, critic):
    if not isinstance(model, (MaskGitTransformer, MaskGitBert)):
        raise UserError(
            f"model={type(model).__name__} is no MaskGitTransformer or MaskGitBert; give "
            "one of them."
        )
    if critic is not None and not isinstance(critic, (SelfCritic, TokenCritic)):
        raise UserError(
            f"critic={type(critic).__name__} is neither a TokenCritic nor a SelfCritic; "
            "give one of them, or None."
        )


def _check_sizes(task):
    if task.cond_image_size is None:
        return
    own, small = task.tokenizers
    if own is None or (small is None and task.stored_tokens):
        raise UserError(
            f"cond_image_size={task.cond_image_size} needs tokens of both sizes; give a tokenizer."
        )
    stored_tokens.check_pair(own, small, task.cond_image_size)
