"""Sets of prompts that images are generated for, with a hash, and the seed of each image.

Nothing is fetched: a set is read from the user's file, and each kind says where the file comes
from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from t2i_jax import config, paths
from t2i_jax.errors import UserError
from t2i_jax.eval import prompt_files
from t2i_jax.eval.prompt_files import Prompt
from t2i_jax.values import shown
from t2i_jax.words import counted

_PLAIN = (".txt", ".tsv", ".csv", ".jsonl", ".ndjson", ".json")


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """A set of prompts in an order, with the rule by which they were chosen.

    Attributes:
      kind: "coco", "parti", "geneval", "t2i-compbench", "dpg" or "file".
      source: the file or folder, as it was given.
      file_sha256: of the file's bytes, of a folder those of its files in order of their names.
      rule: how prompts were chosen from the file, in words.
      prompts: in the order in which images are numbered.
      images_per_prompt: how many images of each the benchmark asks for.
    """

    kind: str
    source: str
    file_sha256: str
    rule: str
    prompts: tuple[Prompt, ...]
    images_per_prompt: int = 1

    def __post_init__(self):
        if not self.prompts:
            raise UserError(f"prompts={self.source!r} holds no prompts; give a file with some.")
        seen: dict[str, Prompt] = {}
        for prompt in self.prompts:
            if prompt.id in seen:
                raise UserError(
                    f"prompts={self.source!r} has the id {prompt.id!r} twice; give each prompt an "
                    "id of its own."
                )
            seen[prompt.id] = prompt

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def texts(self) -> list[str]:
        """The prompts themselves."""
        return [prompt.text for prompt in self.prompts]

    @property
    def sha256(self) -> str:
        """The hash of the list: of its ids and texts in order, whatever file they stood in."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(json.dumps([prompt.id, prompt.text]).encode() + b"\n")
        return digest.hexdigest()

    def about(self) -> dict[str, Any]:
        """The entry about the prompts in the results, as JSON."""
        return {
            "kind": self.kind,
            "source": self.source,
            "file_sha256": self.file_sha256,
            "sha256": self.sha256,
            "rule": self.rule,
            "count": len(self.prompts),
            "images_per_prompt": self.images_per_prompt,
        }

    def by_category(self) -> dict[str, list[int]]:
        """The places of the prompts of each category, in order of first occurrence; {} where
        prompts have none.
        """
        found: dict[str, list[int]] = {}
        for place, prompt in enumerate(self.prompts):
            if prompt.category:
                found.setdefault(prompt.category, []).append(place)
        return found


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of prompt set.

    Attributes:
      read: (path, count, seed) -> (prompts, rule); count None: all of them. seed None: the first.
      images_per_prompt: that the benchmark asks for.
      file: what the file or folder is called where it is published, and where that is.
    """

    read: Callable[..., tuple[list[Prompt], str]]
    images_per_prompt: int
    file: str


KINDS: dict[str, Kind] = {
    "coco": Kind(
        prompt_files.coco, 1,
        "captions_val2014.json of annotations_trainval2014.zip from cocodataset.org",
    ),
    "parti": Kind(
        prompt_files.parti, 1,
        "PartiPrompts.tsv of github.com/google-research/parti (Apache-2.0)",
    ),
    "geneval": Kind(
        prompt_files.geneval, 4,
        "prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval (MIT)",
    ),
    "t2i-compbench": Kind(
        prompt_files.compbench, 10,
        "the folder examples/dataset, or one *_val.txt of it, of "
        "github.com/Karine-Huang/T2I-CompBench (MIT)",
    ),
    "dpg": Kind(
        prompt_files.dpg, 4,
        "the folder dpg_bench/prompts of github.com/TencentQQGYLab/ELLA (Apache-2.0)",
    ),
}  # fmt: skip


def read(spec: str, count: int | None = None, seed: int | None = 0) -> PromptSet:
    """The prompts that `spec` names.

    Args:
      spec: "coco:FILE", "parti:FILE", "geneval:FILE", "t2i-compbench:FILE or FOLDER",
        "dpg:FOLDER"; or a file by itself: .txt with a prompt in each line, or a .tsv, .csv, .jsonl
        or .json with a column caption, text or prompt, and id and category where it has them.
      count: number of prompts: of COCO those of images drawn by the seed, of others the first;
        None: all.
      seed: of the images that are drawn from COCO; None: the first by their ids.

    Raises:
      UserError: an unknown kind, no such file, one of another form (with its line and field), or
        fewer prompts than `count`.
    """
    name, colon, place = spec.partition(":")
    if name not in KINDS:
        if colon and not paths.given("prompts", spec).exists() and "/" not in name:
            raise UserError(f"prompts={shown(spec)} is no known set; {_near(name)}")
        return _of("file", Kind(prompt_files.plain, 1, "a text file or a table"), spec, count, seed)
    kind = KINDS[name]
    if not place:
        raise UserError(
            f"prompts={shown(spec)} does not say where the prompts are; write {name}:PATH, where "
            f"PATH is {kind.file}."
        )
    return _of(name, kind, place, count, seed)


def seed_of(seed: int, prompt_id: str, number: int = 0) -> int:
    """The seed of one image, from 0 to 2^63 - 1: a hash of the run's seed, the prompt's id and the
    image's number among those of its prompt.

    How many prompts there are, and which process draws which, changes no image.
    """
    text = json.dumps([int(seed), prompt_id, int(number)]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def _of(name, kind, place, count, seed):
    if count is not None and count < 1:
        raise UserError(f"count={count} asks for no prompts; give 1 or more, or None for all.")
    path = paths.given("prompts", place)
    if not path.exists():
        raise UserError(f"prompts={paths.shown(place)} is not there; give {kind.file}.")
    if name == "file" and path.suffix.lower() not in _PLAIN:
        raise UserError(
            f"prompts={paths.shown(place)} has no ending that is known; give one of "
            f"{', '.join(_PLAIN)}, or say which set it is, as in parti:FILE."
        )
    found, rule = kind.read(path, count, seed)
    if count is not None and len(found) < count:
        raise UserError(
            f"prompts={paths.shown(place)} has {counted(len(found), 'prompt')} and {count} are "
            f"asked for; give at most {len(found)}."
        )
    return PromptSet(
        name,
        place,
        prompt_files.sha256_of(path),
        rule,
        tuple(found[:count]),
        kind.images_per_prompt,
    )


def _near(name):
    near = config.did_you_mean(name, KINDS)
    return near if near.endswith("?") else f"{near.rstrip('.')}, or a file."


def labels_of(prompts: PromptSet) -> Mapping[str, list[Any]]:
    """The further columns of a set, each with a value per prompt; None where a prompt has none."""
    names = dict.fromkeys(name for prompt in prompts.prompts for name in prompt.labels)
    return {name: [prompt.labels.get(name) for prompt in prompts.prompts] for name in names}
