"""The class-conditional MaskGIT of google-research/maskgit, from and to its two files for Flax: the
transformer, and the image tokenizer.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax

from t2i_jax import convert, paths
from t2i_jax.config import did_you_mean
from t2i_jax.convert import flax_io, torch_io
from t2i_jax.errors import UserError
from t2i_jax.foreign import text_file
from t2i_jax.models.maskgit_bert import MaskGitBert
from t2i_jax.models.taming_vqgan import VQGAN
from t2i_jax.systems.imported import Imported, TorchFile
from t2i_jax.systems.maskgit.options import PUBLISHED, MaskGitOptions
from t2i_jax.systems.maskgit.task import MaskGitTask
from t2i_jax.systems.tokenizer import weights as tokenizers
from t2i_jax.text.classes import ClassLabels

# The package's sampling options; the paper has 8 steps at 256 pixels, and 12 at 512.
OPTIONS = MaskGitOptions(
    steps=16, guidance=1.0, growing=False, choice_temperature=4.5, plausibility=None,
    compat=PUBLISHED,
)  # fmt: skip
_GIVEN = ("tokenizer", "class_names")
_LONGEST = 2**20  # most bytes of a file of class names


def from_flax(file: TorchFile, model: MaskGitBert) -> Imported:
    """A MaskGIT from the file of its transformer, and that of its tokenizer, which the user names
    as `maskgit.tokenizer`.

    Raises:
      UserError: no tokenizer, or one of another grid or codebook; names of other than the classes.
    """
    given = file.options("maskgit")
    for name in given:
        if name not in _GIVEN:
            raise UserError(
                f"maskgit has no argument {name!r} for such weights; {did_you_mean(name, _GIVEN)}"
            )
    tokenizer = _tokenizer(file, model, given.get("tokenizer"))
    text, groups = None, {"decoder": file.params["decoder"]}
    if model.num_classes:
        names = _names(given.get("class_names"), model.num_classes)
        text, groups = ClassLabels(names, model.dim), dict(file.params)
    task = MaskGitTask(model, text, tokenizer.task.model, cond_drop_prob=0.0, label_smoothing=0.1)
    parts = {"tokenizer": tokenizer}
    return Imported(
        "MaskGitBert", task, {"maskgit": groups}, {}, tokenizer.image_size, parts, OPTIONS
    )


def _tokenizer(file, model, path):
    if path is None:
        raise UserError(
            f"weights={file.path!r} hold a MaskGitBert without its image tokenizer, which has a "
            "file of its own; give maskgit.tokenizer=FILE."
        )
    read = convert.weights(paths.given("maskgit.tokenizer", path), file.options("tokenizer"))
    network = read.model
    if not isinstance(network, VQGAN):
        raise UserError(
            f"maskgit.tokenizer={str(path)!r} holds a {type(network).__name__}; give the file of "
            "MaskGIT's VQGAN."
        )
    if network.codebook_size != model.codebook_size:
        raise UserError(
            f"maskgit.tokenizer={str(path)!r} has {network.codebook_size} codes, and the "
            f"transformer is read with codebook_size={model.codebook_size}; give "
            f"codebook_size={network.codebook_size}, or its own tokenizer."
        )
    side: Any = model.fmap_size
    network = network.clone(parent=None, image_size=side * network.patch_size)
    return tokenizers.imported(network, read.params)


def _names(given, count):
    """The names of the classes: those given, or the lines of a file; without either numbers from 0
    on, as in the package.
    """
    if given is None:
        return tuple(map(str, range(count)))
    if isinstance(given, str):
        named = f"maskgit.class_names={given!r}"
        given = text_file.read(paths.given("maskgit.class_names", given), named, _LONGEST)
        given = [line for line in given.splitlines() if line.strip()]
    if not isinstance(given, (list, tuple)) or len(given) != count:
        told = len(given) if isinstance(given, (list, tuple)) else 0
        raise UserError(
            f"maskgit.class_names has {told} names, and the weights {count} classes; give one for "
            "each."
        )
    return tuple(map(str, given))


def to_flax(contents: Any, path: pathlib.Path) -> None:
    """Writes the transformer of a run as the package reads it; the tokenizer's run goes to a file
    of its own.

    Raises:
      UserError: a run that the package has no place for.
    """
    task, own = contents.recipe.task, dict(contents.averaged["maskgit"])
    classes = 0 if task.text is None else len(getattr(task.text, "names", ()))
    if task.critic is not None or (task.text is not None and not classes):
        raise UserError(
            "run has a critic, or another text encoder than ClassLabels, and maskgit has no place "
            "for it; t2i export writes the system as it is."
        )
    if classes != task.network.num_classes:
        raise UserError(
            f"model.num_classes={task.network.num_classes} is not the number of classes, "
            f"{classes}, and the vocabulary of maskgit holds both; train with num_classes="
            f"{classes}."
        )
    state = convert.to_state(task.network, jax.device_get(own))
    (flax_io if path.suffix.lower() == flax_io.ENDING else torch_io).write(path, state)
