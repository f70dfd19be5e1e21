"""The interface of systems: the task, its parts, its options, and the trained system that evaluates
itself.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np

from t2i_jax import sharding
from t2i_jax.errors import UserError
from t2i_jax.eval.evaluation import Evaluation
from t2i_jax.on_host import initialise
from t2i_jax.text.encoder import TextEncoder
from t2i_jax.types import Array, Batch, Key, Metrics, Params, SamplingProgram, Stats
from t2i_jax.words import named

# `held_out(count, entries)`: that many samples that training did not see, as a batch with these
# entries.
HeldOut = Callable[[int, Sequence[str]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A trained thing that a task reads and never changes.

    Attributes:
      of: the task whose run it is; or a network, whose weights are read from a file of a PyTorch
        package.
      field: the task's field that takes its network.
      told: of a network that is read from a file, the fields that weights do not tell: they are
        those of the task's own network, where it has one.
    """

    of: type
    field: str
    told: tuple[str, ...] = ()

    @property
    def is_file(self) -> bool:
        """Whether it is read from a file of weights rather than trained here."""
        return not issubclass(self.of, SystemTask)


@dataclasses.dataclass(frozen=True)
class Given:
    """A part as a task gets it.

    Attributes:
      network: goes into the task's field. weights: an argument of the step; their shapes where
        nothing is computed.
      system: the trained system, for a task that joins whole systems; None for a file of weights
        and for shapes.
      home: the folder of its run; None for a file of weights, and where it is still to be trained.
      fingerprint: tells weights apart; "" where nobody asked for it yet.
      made_with: by column of packed data that its run was trained on ("text", "clip") what the
        manifest says that this was made with; without those of which the run does not tell.
      planned: the task whose run it is, where `weights` are shapes. parts: what that run was, or
        will be, trained with.
    """

    network: Any
    weights: Any
    system: Any = None
    home: pathlib.Path | None = None
    fingerprint: str = ""
    made_with: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    planned: Any = None
    parts: Mapping[str, Given] = dataclasses.field(default_factory=dict)

    @property
    def task(self) -> Any:
        """The task whose run it is; None for a file of weights."""
        return self.planned if self.system is None else self.system.task


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a system that samples nothing from text."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """The results of an evaluation: numbers by name, sheets of images (HWC uint8) by file name."""

    metrics: Mapping[str, float]
    sheets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def of_held_out(measures: Mapping[str, float]) -> Mapping[str, float]:
    """Measures under the names of an evaluation: "recall@1/image_to_text" becomes
    "recall@1_heldout/image_to_text".
    """
    named = {}
    for name, value in measures.items():
        measure, slash, of = name.partition("/")
        named[f"{measure}_heldout{slash}{of}"] = value
    return named


def on_host(part: Given) -> Given:
    """The part with all of its weights, those of its system too, in the host's memory."""
    if part.system is None:
        return dataclasses.replace(part, weights=jax.device_get(part.weights))
    system = _moved(part.system, jax.device_get)
    return dataclasses.replace(part, system=system, weights=system.weights)


def on_device(system: System, device: jax.Device | None = None) -> System:
    """The system with all of its weights on the device; arrays that it has twice lie there once.

    Args:
      device: None: the one that has weights already, where it is one. Weights that were trained,
        loaded or exported lie there alike, so that one program is compiled for all of them.
    """
    there: dict[int, Any] = {}
    device = device or _only_device(system)

    def put(leaf):
        if id(leaf) not in there:
            there[id(leaf)] = jax.device_put(leaf, device)
        return there[id(leaf)]

    return _moved(system, lambda tree: jax.tree.map(put, tree))


def _only_device(system):
    """The one device that has weights of the system already; None: several have, or none has."""
    devices: set[Any] = set()

    def note(tree):
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array):
                devices.update(leaf.sharding.device_set)
        return tree

    _moved(system, note)
    return next(iter(devices)) if len(devices) == 1 else None


def _moved(system, move):
    """The system with `move(tree)` in place of its weights, and of those of systems within it."""
    found = {}
    for field in dataclasses.fields(system):
        value = getattr(system, field.name)
        if isinstance(value, System):
            found[field.name] = _moved(value, move)
        elif field.name in ("weights", "frozen"):
            found[field.name] = move(value)
    return dataclasses.replace(system, **found)


class SystemTask:
    """A `t2i_jax.types.Task` that also answers all that runs and commands ask of a system.

    The defaults are here.

    A task is a frozen dataclass. Where it has a field `text`, that is its text encoder.

    Attributes:
      parts: what it reads and never changes, by name, in the order in which it is trained.
      options: a frozen dataclass: what sampling can be told, with docs, ranges and defaults. Its
        `needs` and `idle_with`, where it has them, say by option the arguments of `generate` and
        the options without any of which, and with any of which, it has no effect, and its
        `idle_fields` which options the value of another one leaves so.
      validated_by: the metric of `validate` whose smallest value is the best checkpoint's.
      compares_rows: whether a loss compares the rows of a batch with each other, so that one of
        micro-batches is another one than that of the whole batch.
      makes_images: whether its system is a `TextToImage`, whose images can be measured while it
        trains.
    """

    parts: ClassVar[Mapping[str, Part]] = {}
    options: ClassVar[type] = NoOptions
    validated_by: ClassVar[str] = "loss"
    compares_rows: ClassVar[bool] = False
    makes_images: ClassVar[bool] = False

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The encoder of captions; None for a task without them."""
        return getattr(self, "text", None)

    @property
    def trains_vocabulary(self) -> bool:
        """Whether `prepare_text` trains a vocabulary on the captions; a run that begins with
        another one's weights has that one's instead.
        """
        return self.text_encoder is not None and self.text_encoder.trains_vocabulary

    @property
    def network(self) -> Any:
        """The network that another task gets when this one is its part.

        None for a task that is joined as a whole.
        """
        return None

    def made_size(self, options: Any, trained_at: int | None = None) -> int | None:
        """Side in pixels of the images that the trained system makes; None: they are no squares, or
        nothing tells.

        Args:
          options: how it samples, a value of `self.options`. trained_at: side of the images that
            its data give, which counts where parts that tell another are not known; None: they
            give none.
        """
        sizes = (getattr(one, "image_size", None) for one in (options, self))
        size = next((size for size in sizes if size is not None), trained_at)
        return size if isinstance(size, int) else None

    @property
    def idle_fields(self) -> Mapping[str, str]:
        """The fields without an effect, see `config.idle`."""
        return {}

    @property
    def unread_parts(self) -> Mapping[str, str]:
        """The parts that neither training nor the trained system reads, by name, and why."""
        return {}

    @property
    def idle_groups(self) -> tuple[str, ...]:
        """The groups that a step neither changes nor reads, which lie in the host's memory while it
        trains.
        """
        return ()

    @property
    def idle_parts(self) -> tuple[str, ...]:
        """The entries of `frozen` that a step does not read, which lie in the host's memory while
        it trains.
        """
        return ()

    @property
    def held(self) -> Mapping[str, tuple[str, ...]]:
        """The parameters of each group, by name or path ("encoder/norm"), that training leaves as
        they are, weight decay included; {}: it moves all of them.
        """
        return {}

    def initialise(self, key: Key) -> tuple[Mapping[str, Params], Stats]:
        """The first parameters by group and the first statistics, as a training begins with them:
        what the task's `init` gives, compiled, without the names of axes.
        """
        return initialise(sharding.init_of(self), key)

    def weights_shapes(self) -> Any:
        """Shapes of `weights` of the trained system, where this task is a part of another one."""
        return sharding.unbox(sharding.parameters_of(self))

    @property
    def sequence_length(self) -> int | None:
        """Tokens of the sequence that a mesh may split; None: there is none that can be split."""
        return None

    @property
    def held_as_begun(self) -> str:
        """The field, with its value, that keeps weights as they were when the run began, so that it
        must begin with trained ones (`init` of the recipe); "" where all is trained.
        """
        return ""

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Refuses a batch, divided into `accumulate` micro-batches, of which the losses can't be
        made.
        """

    @property
    def inputs(self) -> tuple[str, ...]:
        """The arguments that `generate` of the system takes beside prompts: "negative_prompts",
        "images", "other_images", "instead_of", "init_images", "mask", "cond_images",
        "start_images".
        """
        return ()

    @property
    def samples(self) -> tuple[str, ...]:
        """The entries of held-out data that the system is evaluated on."""
        return ("image",)

    def with_parts(self, parts: Mapping[str, Given]) -> Self:
        """The task with the networks of its parts in their fields.

        Args:
          parts: by name; those that were not given are missing.

        Raises:
          UserError: a part is missing that the task can't do without.
        """
        fields = {
            part.field: parts[name].network for name, part in self.parts.items() if name in parts
        }
        return dataclasses.replace(self, **fields) if fields else self  # type: ignore[type-var]

    def check_parts(self, parts: Mapping[str, Given]) -> None:
        """Refuses parts that can't be joined, as far as their tasks tell, and the fingerprints of
        those that were trained before. It is asked before the first of them trains.
        """

    @property
    def text_lengths(self) -> Mapping[str, int]:
        """The number of tokens of a caption that each network reads, where the text encoder may
        read more; {}: every network reads what the encoder does.
        """
        return {}

    def without(self, parts: Mapping[str, Given]) -> Sequence[str]:
        """Sentences about features that are off because a part is not given; told once before it
        trains.
        """
        return ()

    def prepare_text(
        self,
        folder: str | os.PathLike,
        captions: Callable[[], Iterable[str]],
        parts: Mapping[str, Given],
    ) -> None:
        """Writes into `folder` what the text encoder's `tokenizer` reads, unless it is there
        already.

        Args:
          captions: of the data. parts: by name; a task whose captions are read by one of them
            copies that one's vocabulary.
        """
        if self.text_encoder is not None:
            self.text_encoder.prepare(folder, captions)

    def frozen(self, parts: Mapping[str, Given]) -> Mapping[str, Any]:
        """The weights that the step reads and never changes: those of the parts, and those of a
        frozen text encoder.
        """
        weights = {name: part.weights for name, part in parts.items()}
        return weights | dict(self.text_encoder.frozen() if self.text_encoder is not None else {})

    def frozen_shapes(self, parts: Mapping[str, Given]) -> Mapping[str, Any]:
        """The shapes of `frozen`, from parts that hold shapes."""
        weights = {name: part.weights for name, part in parts.items()}
        return weights | dict(
            self.text_encoder.frozen_shapes() if self.text_encoder is not None else {}
        )

    def columns(self, parts: Mapping[str, Given]) -> Mapping[str, Mapping[str, Any]]:
        """{column of packed data that the task reads: what it must have been made with}; a tuple
        holds several values, each of which will do.
        """
        return self.text_encoder.columns() if self.text_encoder is not None else {}

    def sampling_programs(self, batch_size: int) -> Mapping[str, SamplingProgram]:
        """The programs that make `batch_size` images, by name; {} for a task that makes none."""
        return {}

    def check_options(self, options: Any) -> None:
        """Refuses options that do not fit this task, beyond what they refuse themselves."""

    def check_sampling(self, options: Any) -> None:
        """Refuses options with which the trained system would refuse to sample. It is asked before
        a run trains, and not of a recipe that is stored with a trained one.
        """

    def adapted(self, options: Any, defaults: Any, given: Collection[str]) -> Any:
        """Options that a user changed from the defaults of a recipe, brought into agreement.

        What the recipe sets for a choice that the user changed (its sampler's steps) is dropped;
        what the user gave stays, also where it is what the recipe has.

        Args:
          given: names of the options that the user gave.
        """
        return options

    def validate(
        self,
        params: Mapping[str, Params],
        stats: Stats,
        frozen: Any,
        batch: Batch,
        key: Key,
        step: Array,
    ) -> Metrics:
        """The metrics of a held-out batch while training, and by `t2i eval`; jittable.

        The metrics of the losses, as in a training step, and nothing is updated.

        Args:
          params: by group, EMA weights where they are kept, as the system samples with them. key:
            the same for a batch each time. step: updates made so far.
        """
        found: dict[str, Array] = {}
        for number, objective in enumerate(self.objectives):  # type: ignore[attr-defined]
            mine = jax.random.fold_in(key, number)
            loss, (metrics, _) = objective.loss(params, stats, frozen, batch, mine, step)
            found = {"loss": loss, **found, **metrics} if number == 0 else {**found, **metrics}
        return found

    def after_update(
        self, params: Mapping[str, Params], stats: Stats, batch: Batch, key: Key, step: Array
    ):
        """Makes the changes of a step that need no gradient; here there are none. Returns `(params,
        stats)`.
        """
        return params, stats

    def system(
        self,
        params: Mapping[str, Params],
        stats: Stats,
        parts: Mapping[str, Given],
        frozen: Mapping[str, Any],
        text_tokenizer: Any,
    ) -> System:
        """The trained system.

        Args:
          params: by group, averaged where an average is kept. parts: the trained parts by name.
          frozen: of `frozen`. text_tokenizer: captions to ids; None where there is nothing to
            tokenize.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class System:
    """A trained system; those that make images have `generate`, image tokenizers `encode` and
    `decode`.

    Attributes:
      task: the task that trained it. weights: parameters by name.
      crop: the way in which training cut its images (`data.crop`); those that it is given are
        cut likewise.
    """

    task: Any
    weights: Mapping[str, Any]
    crop: str = dataclasses.field(default="center", kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in cls.__dict__:  # that of a dataclass writes out all weights
            cls.__repr__ = System.__repr__

    def __repr__(self) -> str:
        """A line with its kind, the size of its images, and the number of its parameters."""
        size = getattr(self.task, "image_size", None)
        found = [f"{size}x{size} pixels"] if isinstance(size, int) else []
        if (encoder := getattr(self.task, "text_encoder", None)) is not None:
            found.append(f"captions by {type(encoder).__name__}")
        for name, group in self.weights.items():
            count = sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(group))
            found.append(f"{count:,} parameters of {name}")
        return f"{type(self).__name__}({', '.join(found)})"

    @property
    def trained(self) -> Mapping[str, Any]:
        """The weights that tell it apart: its own; of a system that has none and joins others, by
        their names, theirs with those of their parts.
        """
        if self.weights:
            return self.weights
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _with_parts(one) for name, one in fields.items() if isinstance(one, System)}

    def made_size(self, options: Any, trained_at: int | None = None) -> int | None:
        """Side in pixels of the images that it makes, see `SystemTask.made_size`."""
        return self.task.made_size(options, trained_at)

    def on_mesh(
        self, shape: Mapping[str, int] | None, devices: Sequence[jax.Device] | None = None
    ) -> System:
        """The same system, sampling on a mesh.

        Args:
          shape: sizes of the mesh's axes; None: all devices on "data". devices: None: all there
            are.

        Raises:
          UserError: a system that works on one device, or a mesh that does not fit the devices.
        """
        raise UserError(
            f"mesh is given for {type(self).__name__}, which works on one device; leave it out."
        )

    def offloaded(self) -> System:
        """The same system, whose weights are in the host's memory while they are not read.

        Raises:
          UserError: a system that has all of its weights on the device at any time.
        """
        raise UserError(
            f"offload is given for {type(self).__name__}, whose weights are all on the device at "
            "any time; leave it out."
        )

    def generate(self, prompts: Any = None, options: Any = None, **_: Any) -> Any:
        """Images from prompts; this system makes none."""
        raise UserError(
            f"{named(self)} makes no images from text; give the run of a system that does."
        )

    @property
    def generates(self) -> bool:
        """Whether `generate` makes images from prompts."""
        return type(self).generate is not System.generate

    @property
    def upscales(self) -> bool:
        """Whether `upscale` makes larger images of images."""
        return type(self).upscale is not System.upscale

    @property
    def compares(self) -> bool:
        """Whether `similarity` compares images with captions."""
        return type(self).similarity is not System.similarity

    def upscale(
        self, images: Array | np.ndarray, prompts: Any = None, options: Any = None, **_: Any
    ) -> np.ndarray:
        """Larger images from images; this system makes none."""
        raise UserError(
            f"{named(self)} makes no larger images; give the run of a super-resolution network."
        )

    def check_upscale(
        self, prompts: Any = None, options: Any = None, *, batch_size: int | None = None
    ) -> None:
        """Makes those checks of `upscale` that need no images, before there are any, and tells what
        they find; nothing compiles. Prompts are for one image each; arguments as of `upscale`.
        """

    @property
    def coded_size(self) -> int:
        """The side in pixels of the images that `encode` reads and `decode` makes; this system has
        neither.
        """
        raise UserError(
            f"{named(self)} makes no codes of images; give the run of an image tokenizer."
        )

    def encode(self, images: Array | np.ndarray) -> Array:
        """Codes of images; this system makes none."""
        raise UserError(
            f"{named(self)} makes no codes of images; give the run of an image tokenizer."
        )

    def embed_images(self, images: Any, batch_size: int | None = None) -> np.ndarray:
        """Vectors of images in a space that they share with captions; this system makes none."""
        raise UserError(f"{named(self)} embeds no images; give the run of a CLIP.")

    def similarity(self, images: Any, captions: Any) -> np.ndarray:
        """The similarity of each image to each caption; this system compares none."""
        raise UserError(f"{named(self)} compares no images with captions; give the run of a CLIP.")

    def encode_text(self, captions: Any, batch_size: int | None = None) -> Any:
        """The embeddings of captions, and the encodings of their tokens; this system makes none."""
        raise UserError(f"{named(self)} embeds no captions; give the run of a CLIP.")

    def preview(
        self, held_out: HeldOut, evaluation: Evaluation
    ) -> tuple[np.ndarray, Mapping[str, float]]:
        """A grid of `evaluation.preview` images (HWC uint8), and what can be measured on them."""
        raise NotImplementedError

    def sweep(self, held_out: HeldOut, evaluation: Evaluation) -> Mapping[str, np.ndarray]:
        """Sheets of images over the options that matter most, by file name; {} for a system without
        such options.
        """
        return {}

    def evaluate(self, held_out: HeldOut, evaluation: Evaluation) -> Findings:
        """Measures the trained system on samples that it did not see."""
        raise NotImplementedError


def _with_parts(system):
    """The weights of a system within another one, and those of its parts."""
    frozen = getattr(system, "frozen", None) or {}
    parts = {name: frozen[name] for name in system.task.parts if name in frozen}
    return {"weights": system.trained, "parts": parts}
