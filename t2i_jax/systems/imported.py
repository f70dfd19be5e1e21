"""A file of a PyTorch package as a system reads it, and what the system makes of it."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t2i_jax import convert
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.text.stored import StoredText
from t2i_jax.text.t5 import T5Text
from t2i_jax.text.tokenizer import TextTokenizer

LONGEST_TEXT = 256  # tokens of a caption that the T5 of every package encodes


@dataclasses.dataclass(frozen=True)
class Imported:
    """A system whose weights came from PyTorch.

    Attributes:
      kind: the package's class, for messages. task: with the networks of its parts. params: by
        group. stats: see `Task`.
      image_size: side of the images. parts: by name, written into folders of their own.
      options: how the package samples, where that is unlike the task's defaults; None: it is not.
      vocabulary: from captions to ids, which is written beside the weights; None: there is none.
    """

    kind: str
    task: Any
    params: Mapping[str, Any]
    stats: Mapping[str, Any]
    image_size: int
    parts: Mapping[str, Imported] = dataclasses.field(default_factory=dict)
    options: Any = None
    vocabulary: TextTokenizer | None = None


class TorchFile:
    """A file of weights or a live module, with what its user says of it; it is read once, when it
    is asked for.

    Args:
      source: path of the file, or the module.
      t5: folder or hub name of the T5 on whose embeddings the system was trained; None: it is given
        embeddings.
      fields: configuration of networks that the weights do not tell. options: by system, arguments
        of the package's class.

    Attributes:
      unused: what the user said and no system asked for. unknown: why `network` is None.
    """

    def __init__(
        self,
        source: Any,
        t5: str | None,
        fields: Mapping[str, Any],
        options: Mapping[str, Mapping[str, Any]],
    ):
        self.source, self.fields = source, dict(fields)
        self.unused: dict[str, Any] = dict(options) | ({} if t5 is None else {"t5": repr(t5)})
        self.unknown: UserError | None = None
        self._t5, self._options = t5, options

    @property
    def path(self) -> str:
        """The file, or the class of the module, for messages."""
        return (
            str(self.source) if isinstance(self.source, pathlib.Path) else repr(type(self.source))
        )

    @functools.cached_property
    def loaded(self) -> Any:
        """The content of a .pt, .pth, .bin or .ckpt file; None for .safetensors and a module."""
        if not isinstance(self.source, pathlib.Path) or self.source.suffix == ".safetensors":
            return None
        return torch_io.load(self.source)

    @property
    def network(self) -> Any:
        """The network whose weights it holds.

        None for weights of no network that `convert` knows.
        """
        return self._converted.model

    @property
    def params(self) -> Mapping[str, Any]:
        """The weights, as `convert.from_torch` gives them."""
        return self._converted.params

    @property
    def told(self) -> Mapping[str, Any]:
        """The settings that a live module or a stored configuration tells, as `convert.weights`
        gives them.
        """
        return self._converted.told

    @property
    def beside(self) -> Mapping[str, Any]:
        """Arrays that the network has no place for, by their names there."""
        return self._converted.beside

    def options(self, system: str) -> dict[str, Any]:
        """The arguments of the package's class that the user gave for a system."""
        self.unused.pop(system, None)
        return dict(self._options.get(system, {}))

    def check_t5_name(self, argument: str, name: Any) -> None:
        """Refuses the name of a T5 that the user gave without the T5 itself."""
        if name is not None and self._t5 is None:
            raise UserError(
                f"{argument}={name!r} is a name alone, and captions need that T5; give "
                f"t5={name!r} (--t5 {name}) instead."
            )

    def text(self, width: int, max_length: int | None = None, name: str | None = None) -> Any:
        """The text encoder on whose embeddings a network of this width was trained.

        Args:
          name: of its T5 on the hub, where it is known.

        Raises:
          UserError: a T5 of another width or another name.
        """
        given = self._t5
        is_folder = given is not None and os.path.isdir(os.path.expanduser(given))
        same = name is None or given is None or _of_google(given) == _of_google(name)
        if not same and not is_folder:
            raise UserError(
                f"t5={given!r} is not {name!r}, on whose embeddings the weights were trained; "
                "give that one, or a folder that holds it."
            )
        self.unused.pop("t5", None)
        length: dict[str, Any] = {} if max_length is None else {"max_length": max_length}
        text = (
            StoredText(width, **length)
            if self._t5 is None
            else T5Text.from_directory(self._t5, **length)
        )
        if text.dim != width:
            raise UserError(
                f"t5={self._t5!r} is {text.dim} wide and the weights want {width}; give their own "
                "T5."
            )
        return text

    @functools.cached_property
    def _converted(self):
        try:
            return convert.weights(self.source, self.fields)
        except convert.UnknownWeights as error:
            self.unknown = error
            return convert.Weights(None, {}, {})


def _of_google(name):
    """The name of a T5 on the hub, where those of 2019 are found with their owner and without."""
    return name.removeprefix("google-t5/")
