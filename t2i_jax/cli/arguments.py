"""The arguments of a command: from the parameters of its function, or the fields of a dataclass, to
their values and their help.

A parameter without a default, or one that says so (`Shown(positional=True)`), is given by its
place, any other as `--name VALUE` or `--name=VALUE`. A mistake is one `UserError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import pathlib
import re
import shutil
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from t2i_jax import config, values
from t2i_jax.cli import docstring
from t2i_jax.errors import UserError

_MISSING = inspect.Parameter.empty
_NUMBER = re.compile(r"-?(\d|\.\d|inf|nan)", re.IGNORECASE)
_WORD = re.compile(r"[a-z_]+")
_OVERRIDE = re.compile(r"--?[\w*]+(\.[\w*]+)+=")  # a field of a recipe, written as an option


@dataclasses.dataclass(frozen=True)
class Shown:
    """The form of a parameter on the command line, as `Annotated[int, Shown("N")]`.

    Attributes:
      value: what the help writes for its value; None: a word for its type.
      flag: the option's name without dashes; None: the parameter's.
      positional: it is given by its place.
      default: what the help writes for the default; None: the default itself.
    """

    value: str | None = None
    flag: str | None = None
    positional: bool = False
    default: str | None = None


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a command.

    Attributes:
      name: of the parameter. annotation: its type. default: `inspect.Parameter.empty`: it must be
        given. about: the text of the help. shown: how it stands on the command line.
    """

    name: str
    annotation: Any
    default: Any
    about: str
    shown: Shown

    @property
    def positional(self) -> bool:
        """Whether the argument is given by its place."""
        return self.shown.positional

    @property
    def many(self) -> bool:
        """Whether a positional argument takes all words that are left."""
        return self.positional and typing.get_origin(self.annotation) is tuple

    @property
    def flag(self) -> str:
        """The option, with dashes."""
        return "--" + (self.shown.flag or self.name.replace("_", "-"))

    @property
    def repeats(self) -> bool:
        """Whether the argument is an option that may stand several times, as --image A --image
        B.
        """
        return not self.positional and any(
            typing.get_args(one)[:1] == (pathlib.Path,) for one in _alternatives(self.annotation)
        )

    @property
    def negation(self) -> str:
        """The option that turns a switch off."""
        return "--no-" + self.flag[2:]

    @property
    def is_switch(self) -> bool:
        """Whether the argument is an option without a value."""
        return self.annotation is bool and not self.positional

    @property
    def label(self) -> str:
        """The name of the argument in the help: "CONFIG", "--workdir PATH"."""
        if self.positional:
            return self.shown.value or self.name.upper()
        if self.is_switch:
            return self.negation if self.default is True else self.flag
        return f"{self.flag} {self.shown.value or _value_word(self.annotation)}"


def arguments_of(what: Any, defaults: Mapping[str, Any] | None = None) -> list[Argument]:
    """The arguments that a function takes, or that a dataclass has as fields.

    Args:
      defaults: in place of those that are written there.
    """
    hints = typing.get_type_hints(what, include_extras=True)
    if dataclasses.is_dataclass(what):
        written = {
            field.name: _MISSING if field.default is dataclasses.MISSING else field.default
            for field in config.fields_of(typing.cast(type, what)).values()
        }
    else:
        written = {p.name: p.default for p in inspect.signature(what).parameters.values()}
    told = docstring.of_names(what, written)
    found = []
    for name, default in written.items():
        annotation, shown = _split(hints.get(name, str))
        default = (defaults or {}).get(name, default)
        shown = shown or Shown(positional=default is _MISSING)
        found.append(Argument(name, annotation, default, told.get(name, ""), shown))
    return found


def parsed(arguments: Sequence[Argument], words: Sequence[str], command: str) -> dict[str, Any]:
    """The values of a command line by name of the argument; those that it does not give have their
    defaults. Arguments as of `stated`.
    """
    given = stated(arguments, words, command)
    return {a.name: given.get(a.name, a.default) for a in arguments}


def stated(arguments: Sequence[Argument], words: Sequence[str], command: str) -> dict[str, Any]:
    """The values that a command line gives, by name of the argument: also those that are the
    defaults. Of an option that is given twice the later value counts, as elsewhere, so that a
    script's own can be followed by its user's.

    Args:
      words: what follows the command's name. command: the name, for messages, as "t2i train".

    Raises:
      UserError: an unknown option (with the nearest one), a value that is missing or of another
        type, an argument too many.
    """
    given: dict[str, Any] = {}
    places: list[str] = []
    by_flag = {a.flag: a for a in arguments if not a.positional}
    by_flag |= {a.negation: a for a in arguments if a.is_switch}
    takes_fields = any(a.positional and a.name == "overrides" for a in arguments)
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            places += rest
            break
        if not word.startswith("-") or word == "-" or _NUMBER.match(word):
            places.append(word)
        elif takes_fields and _OVERRIDE.match(word):
            places.append(word.lstrip("-"))
        else:
            flag, equals, text = word.partition("=")
            argument = by_flag.get(flag) or by_flag.get("--" + flag[2:].replace("_", "-"))
            if argument is None:
                raise UserError(_unknown(flag, by_flag, command, takes_fields))
            if argument.is_switch:
                given[argument.name] = _switched(argument, flag, equals, text)
            elif argument.repeats:
                path = text if equals else _values(argument, rest, by_flag)[0]
                given[argument.name] = (*given.get(argument.name, ()), _path(argument, path))
            else:
                texts = [text] if equals else _values(argument, rest, by_flag)
                given[argument.name] = _value(argument, texts)
    written = usage(command, arguments).removeprefix("usage: ")
    given |= _placed([a for a in arguments if a.positional], places, written)
    for argument in arguments:
        if argument.name not in given and argument.default is _MISSING:
            raise UserError(f"{argument.label} is missing; write it as {written}.")
    return given


def called(function: Any, words: Sequence[str], command: str) -> None:
    """Calls a function with the values of a command line, or prints its help where that is asked
    for.
    """
    arguments = arguments_of(function)
    if wants_help(words):
        print(help_of(command, arguments, docstring.paragraphs(function)))
        return
    function(**parsed(arguments, words, command))


def check_said_once(overrides: Sequence[str], field: str, option: str, value: str | None) -> None:
    """Refuses a field of a recipe that is given beside the option that sets it too.

    Args:
      overrides: of fields, as "train.steps=1000".
      field: that the option sets, of the recipe or of any of its parts, as "train.mesh".
      option: its name. value: as it was written; None: it was not given.

    Raises:
      UserError: both are given.
    """
    for override in overrides if value is not None else ():
        path = override.partition("=")[0].strip().lstrip("-")
        if f".{field}." in f".{path}.":
            raise UserError(
                f"{values.shown(override)} is given beside --{option} {value}, which sets the same "
                "field; leave out one of them."
            )


def wants_help(words: Sequence[str]) -> bool:
    """Whether help is asked for."""
    before = words[: words.index("--")] if "--" in words else words
    return "--help" in before or "-h" in before


def help_of(command: str, arguments: Sequence[Argument], about: Sequence[str]) -> str:
    """The help of a command: how it is written, what it does, its arguments."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    blocks = [usage(command, arguments), *(docstring.wrapped(line, width, "") for line in about)]
    for title, positional in (("arguments", True), ("options", False)):
        lines = [f"{title}:"]
        for argument in arguments:
            if argument.positional == positional:
                lines.append(f"  {argument.label}")
                told = f"{argument.about} {_default_of(argument)}".strip()
                lines += [docstring.wrapped(told, width, "      ")] if told else []
        if not positional:
            lines += ["  --help", docstring.wrapped("Show this and end.", width, "      ")]
        if len(lines) > 1:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def usage(command: str, arguments: Sequence[Argument]) -> str:
    """The usage line of a command: "t2i export RUN OUT"."""
    words = []
    for argument in arguments:
        if argument.positional:
            label = f"{argument.label} ..." if argument.many else argument.label
            words.append(label if argument.default is _MISSING else f"[{label}]")
        elif argument.default is _MISSING:
            words.append(argument.label)
    options = any(not a.positional and a.default is not _MISSING for a in arguments)
    return " ".join(["usage:", command, *words, *(["[OPTIONS]"] if options else [])])


def nearest(name: str, known: Sequence[str]) -> str:
    """A remedy for an unknown option or command: the nearest one, or all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    longer = [one for one in known if len(name) > 3 and one.startswith(name)]
    if close or longer:
        return f"did you mean {(longer or close)[0]!r}?"
    return f"known: {', '.join(known)}."


def _unknown(flag, by_flag, command, takes_fields):
    remedy = nearest(flag, [*by_flag, "--help"])
    if takes_fields and "." in flag:
        remedy = f"fields of the recipe are written as {flag.lstrip('-')}=VALUE."
    return f"{flag} is no option of {command}; {remedy}"


def _switched(argument, flag, equals, text):
    value = values.parse(text, bool, flag) if equals else True
    return value != (flag == argument.negation)


def _values(argument, rest, by_flag):
    """The words that follow an option as its value: one, or several numbers or names where it may
    be a tuple.
    """
    if not rest or rest[0].partition("=")[0] in by_flag or rest[0] in ("--", "--help"):
        raise UserError(f"{argument.flag} has no value; write it as {argument.label}.")
    found = [rest.pop(0)]
    while _takes_tuple(argument.annotation) and rest and _alike(found[0], rest[0]):
        found.append(rest.pop(0))
    return found


def _alike(first, word):
    """Whether a word continues a tuple that `first` began: a number, or a name; no caption."""
    if _NUMBER.match(first):
        return bool(_NUMBER.match(word)) and " " not in word
    return bool(_WORD.fullmatch(word))


def _value(argument, texts):
    text = ",".join(texts)
    annotation, name = argument.annotation, argument.flag[2:].replace("-", "_")
    if _admits(annotation, pathlib.Path):
        return _path(argument, text)
    if _takes_tuple(annotation) and "," in text and not _NUMBER.match(text) and text[0] not in "([":
        return tuple(text.split(","))
    if set(_alternatives(annotation)) <= {str, type(None)}:
        return None if text == "None" and annotation is not str else text
    alone = values.literal(text)
    problem = functools.partial(values.problem, annotation=annotation)
    if _is_sequence(annotation) and problem(alone) and not problem((alone,)):
        text = repr((alone,))
    return values.parse(text, annotation, name)


def _path(argument, text):
    if not text:
        name = argument.flag[2:].replace("-", "_")
        raise UserError(f"{name}='' is no path; write it as {argument.label}.")
    return pathlib.Path(text)


def _placed(positional, places, written):
    given: dict[str, Any] = {}
    for argument in positional:
        if argument.many:
            given[argument.name], places = tuple(places), []
        elif places:
            given[argument.name] = _value(argument, [places.pop(0)])
    if places:
        raise UserError(f"{places[0]!r} is one argument too many; write it as {written}.")
    return given


def _split(annotation):
    """An annotation without its Shown, and the Shown or None."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *extras = typing.get_args(annotation)
        shown = next((extra for extra in extras if isinstance(extra, Shown)), None)
        ranged = [extra for extra in extras if isinstance(extra, values.Range)]
        return (typing.Annotated[inner, ranged[0]] if ranged else inner), shown
    return annotation, None


def _alternatives(annotation):
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [one for part in typing.get_args(annotation) for one in _alternatives(part)]
    return [annotation]


def _admits(annotation, kind):
    return any(one is kind for one in _alternatives(annotation))


def _takes_tuple(annotation):
    return any(typing.get_origin(one) is tuple for one in _alternatives(annotation))


def _is_sequence(annotation):
    """Whether an annotation allows a tuple of any length, of which one value may stand alone."""
    return any(typing.get_args(one)[-1:] == (Ellipsis,) for one in _alternatives(annotation))


def _value_word(annotation):
    words = {int: "N", float: "NUMBER", str: "TEXT", pathlib.Path: "PATH", bool: "true|false"}
    words |= {tuple[pathlib.Path, ...]: "PATH"}
    found = []
    for one in _alternatives(annotation):
        if one is not type(None):
            word = words.get(one, "VALUE,VALUE")
            found += [word] if word not in found else []
    return "|".join(found)


def _default_of(argument):
    if argument.shown.default is not None:
        return f"Default: {argument.shown.default}."
    default = argument.default
    if default is _MISSING or default is None or argument.many or argument.is_switch:
        return ""
    text = os.fspath(default) if isinstance(default, os.PathLike) else str(default)
    return f"Default: {text}."
