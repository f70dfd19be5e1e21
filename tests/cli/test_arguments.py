"""Arguments from signatures: values, refusals in one sentence, help."""

import ast
import pathlib
import re
import shlex
from typing import Annotated

import pytest

import t2i_jax as t2i
from t2i_jax.cli import arguments, docstring, sample
from t2i_jax.cli.arguments import Shown
from t2i_jax.cli.main import COMMANDS
from t2i_jax.config import fields_of
from t2i_jax.errors import UserError
from t2i_jax.eval import resize
from t2i_jax.eval.evaluation import JUDGES
from t2i_jax.eval.protocol import PROTOCOLS
from t2i_jax.runs.scoring.metrics import METRICS
from t2i_jax.systems import calls
from t2i_jax.values import Count
from tests.e2e.command import inside, refused


def paint(
    run: pathlib.Path,
    overrides: Annotated[tuple[str, ...], Shown("FIELD=VALUE", positional=True)] = (),
    *,
    count: Count = 4,
    sampler: str | tuple[str | None, ...] | None = None,
    guidance: float | tuple[float, ...] = 3.0,
    sizes: tuple[int | tuple[int, int], ...] | None = None,
    captions: bool = True,
    replace: bool = False,
    note: str | None = None,
    json_file: Annotated[pathlib.Path | None, Shown("FILE", flag="json")] = None,
) -> None:
    """Paint images.

    And nothing else.

    Args:
        run: Folder of the run.
        overrides: Fields to change.
        count, guidance, sizes: Numbers. sampler: One name,
        or one for each. json_file: A file.
    """


def parsed(*words):
    return arguments.parsed(arguments.arguments_of(paint), words, "t2i paint")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["run"], {"run": pathlib.Path("run"), "overrides": (), "count": 4, "captions": True}),
        (["run", "--count", "7", "a.b=1", "c=2"], {"count": 7, "overrides": ("a.b=1", "c=2")}),
        (["--count=7", "run", "--train.steps=3"], {"count": 7, "overrides": ("train.steps=3",)}),
        (["run", "--json", "-"], {"json_file": pathlib.Path("-")}),
        (["run", "--json_file", "x"], None),
        (["run", "--no-captions", "--replace"], {"captions": False, "replace": True}),
        (["run", "--guidance", "2"], {"guidance": 2.0}),
        (["run", "--guidance", "-2e0"], None),
        (["run", "--note", "'quoted' (1, 2)"], {"note": "'quoted' (1, 2)"}),
        (["run", "--note", "none"], {"note": "none"}),
        (["run", "--guidance", "3", "1.5", "a=1"], {"guidance": (3, 1.5), "overrides": ("a=1",)}),
        (["run", "--guidance", "3,1"], {"guidance": (3, 1)}),
        (["run", "--sizes", "15"], {"sizes": (15,)}),
        (["run", "--sizes", "15", "30"], {"sizes": (15, 30)}),
        (["run", "--sizes", "(15, 20), 30"], {"sizes": ((15, 20), 30)}),
        (["run", "--sizes", "wide"], None),
        (["run", "--sampler", "ddim", "heun"], {"sampler": ("ddim", "heun")}),
        (["run", "--sampler", "ddim,heun"], {"sampler": ("ddim", "heun")}),
        (["run", "--sampler", "ddim", "a red circle"], {"sampler": "ddim"}),
        (["run", "*.b=1", "a.b=2"], {"overrides": ("*.b=1", "a.b=2")}),
        (["run", "--count=1", "--guidance", "2", "--count", "3"], {"count": 3, "guidance": 2.0}),
        (["--", "--run", "--b"], {"run": pathlib.Path("--run"), "overrides": ("--b",)}),
    ],
)
def test_a_command_line_gives_values_of_the_parameters_types(words, found):
    if found is None:
        with pytest.raises(UserError):
            parsed(*words)
        return
    values = parsed(*words)
    assert {name: values[name] for name in found} == found
    assert all(type(values[name]) is type(found[name]) for name in found)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "RUN is missing; write it as t2i paint RUN [FIELD=VALUE ...] [OPTIONS]."),
        (["run", "--cuont", "3"], "--cuont is no option of t2i paint; did you mean '--count'?"),
        (["run", "--guid=3"], "--guid is no option of t2i paint; did you mean '--guidance'?"),
        (["run", "-x"], "-x is no option of t2i paint; "),
        (["run", "--a.b", "3"], "fields of the recipe are written as a.b=VALUE."),
        (["run", "--count"], "--count has no value; write it as --count N."),
        (["run", "--count", "--replace"], "--count has no value"),
        (["run", "--count", "many"], "count='many' is not a whole number; give such a value"),
        (["run", "--count", "0"], "count=0 is below 1; give 1 or more."),
        (["run", "--count", "9" * 11], "is above 2147483647; give a number from 1 to 2147483647."),
        (["run", "--count", "9" * 5000], "is not a whole number"),
        (["run", "--count", "9" * 400], "is beyond all limits"),
        (["run", "--guidance", "nan"], "is not a finite number; give a number from 0."),
        (["run", "--replace=perhaps"], "--replace='perhaps' is not true or false"),
        (["run", "--json", ""], "json='' is no path; write it as --json FILE."),
    ],
)
def test_a_mistake_is_one_sentence(words, told):
    with pytest.raises(UserError) as error:
        parsed(*words)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("words", "override", "option"),
    [
        (
            ("evaluate", "--prompts", "p.txt", "--guidance", "3"),
            "evaluation.options.guidance=5",
            "guidance",
        ),
        (("train", "--mesh", "data=1"), "train.mesh={'data': 2}", "mesh"),
        (("train", "--mesh", "data=1"), "*.train.mesh=None", "mesh"),
    ],
)
def test_a_field_and_the_option_that_sets_it_are_not_given_together(
    words, override, option, tmp_path
):
    """The option would win in silence."""
    command, *more = words
    said = refused(command, tmp_path, override, *more)
    assert f"is given beside --{option} {more[-1]}, which sets the same field" in said
    arguments.check_said_once([override, "train.steps=3"], "train.step", "step", "3")
    arguments.check_said_once([override], "train.mesh", "mesh", None)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["RUN", "a caption"], "RUN"),
        (["--offload", "RUN", "a caption"], "RUN"),
        (["--offload=true", "RUN", "a caption"], "RUN"),
        (["--no-offload", "--count", "4", "RUN", "a caption"], "RUN"),
        (["--best_of", "4", "--init", "RUN", "other", "a caption"], "other"),
        (["--help", "RUN"], "RUN"),
        (["--count", "4", "--", "RUN", "a caption"], "RUN"),
        (["--seed=1", "typo", "RUN"], "typo"),
        # options of a system, which may or may not take values
        (["--steps", "4", "RUN", "a caption"], "RUN"),
        (["--steps=4", "RUN", "a caption"], "RUN"),
        (["--growing", "RUN", "a caption"], "RUN"),
        (["--guidance", "3", "1.5", "RUN", "a caption"], "RUN"),
        (["--sampler", "ddim", "heun", "RUN", "a caption"], "RUN"),
        (["--steps", "4", "typo", "a caption"], "typo"),
        (["--steps", "4"], None),
        (["--growing", "~/run", "a caption"], "~/run"),
    ],
)
def test_the_run_of_sample_is_found_among_options(words, found, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "system.json").touch()
    real = {"RUN": str(tmp_path / "run")}
    run = sample._run_in([real.get(word, word) for word in words])
    assert run == (None if found is None else pathlib.Path(real.get(found, found)))


def test_help_has_names_defaults_and_what_the_docstring_says():
    text = arguments.help_of(
        "t2i paint", arguments.arguments_of(paint), docstring.paragraphs(paint)
    )
    lines = text.splitlines()
    assert lines[0] == "usage: t2i paint RUN [FIELD=VALUE ...] [OPTIONS]"
    assert "Paint images." in lines and "And nothing else." in lines
    assert lines[lines.index("  --count N") + 1] == "      Numbers. Default: 4."
    assert lines[lines.index("  --sampler TEXT|VALUE,VALUE") + 1].strip() == (
        "One name, or one for each."
    )
    assert "  --no-captions" in lines and "  --replace" in lines and "  --json FILE" in lines


def _all(commands, *words):
    for name, command in commands.items():
        if isinstance(command, str):
            yield (*words, name)
        else:
            yield from _all(command, *words, name)


@pytest.mark.parametrize("words", [(), ("data",), ("convert",), *_all(COMMANDS)], ids=" ".join)
def test_every_command_has_help(words):
    text = inside(*words, "--help").stdout
    assert text.startswith(f"usage: {' '.join(['t2i', *words])} ") and "--help" in text
    for oddity in ("None", "(default: )", "PATH PATH", "STR", "[["):
        assert oddity not in text
    assert max(map(len, text.splitlines())) <= 100
    lines = text.splitlines()
    undescribed = [
        line
        for line, below in zip(lines, [*lines[1:], ""])
        if line.startswith("  ") and line[2] != " " and not below.startswith("      ")
    ]
    assert not undescribed


def test_the_help_of_evaluate_has_every_name_that_its_options_take():
    words = set(re.findall(r"[\w:-]+", inside("evaluate", "--help").stdout))
    judges = {f"judge:{name}" for name in JUDGES}
    assert {*PROTOCOLS, *METRICS, *judges, *resize.INCEPTION} <= words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "t2i needs a command: quickstart, "),
        (("trian",), "'trian' is no command of t2i; did you mean 'train'?"),
        (("--verison",), "did you mean '--version'?"),
        (("data",), "t2i data needs a command: inspect, pack, "),
        (("data", "pak"), "'pak' is no command of t2i data; did you mean 'pack'?"),
        (("convert", "from_torch"), "did you mean 'from-torch'?"),
        (("sample",), "RUN is missing; write it as t2i sample RUN [CAPTION ...] [OPTIONS]."),
        (("export", "a\udce9"), r"argument 2, 'a\xe9', is not text in UTF-8; write it so."),
    ],
)
def test_a_command_that_is_none_is_one_sentence(words, told):
    lines = inside(*words, status=2).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("t2i: ") and told in lines[0]


def test_the_version_is_told():
    assert inside("--version").stdout == "t2i_jax 0.1.0\n"


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        (
            t2i.PartiOptions(keep_rows=0.3),
            ("init", "mask"),
            "keep_rows=0.3 does nothing beside --m",
        ),
        (
            t2i.MaskGitOptions(strength=0.3),
            ("init", "mask"),
            "strength=0.3 does nothing beside --m",
        ),
        (t2i.MaskGitOptions(strength=0.3, edit_steps=2), ("init",), "nothing beside --edit-steps"),
        (
            t2i.MaskGitOptions(strength=0.3, outpaint=(0, 0, 0.5, 0)),
            ("init",),
            "nothing beside --outp",
        ),
        (t2i.MaskGitOptions(edit_share=0.2), ("init",), "is nothing without --edit-steps"),
        (t2i.MaskGitOptions(feather=2.0), ("init",), "is nothing without --mask or --outpaint"),
        (t2i.MaskGitOptions(overlap=0.2), (), "overlap=0.2 is nothing without --image-size"),
        (t2i.MuseOptions(stop_at="base", superres_steps=3), (), "nothing beside --stop-at"),
        (t2i.ImagenOptions(strength=0.3), ("init", "mask"), "strength=0.3 does nothing beside --m"),
        (t2i.ImagenOptions(start_at=2), (), "start_at=2 is nothing without --start"),
        (t2i.DALLE2Options(prior_steps=3), ("image",), "prior_steps=3 does nothing beside --image"),
        (t2i.DALLE2Options(prior_compat="dalle2-pytorch"), ("image",), "does nothing beside --im"),
        (t2i.MaskGitOptions(overlap=0.2), (), "overlap=0.2 is nothing without --image-size"),
        (t2i.MaskGitOptions(steps=3, edit_steps=2), ("init",), "steps=3 does nothing beside --ed"),
        (t2i.MuseOptions(steps=3, edit_steps=2), ("init",), "steps=3 does nothing beside --ed"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(options, given, message):
    with pytest.raises(UserError, match=message):
        sample._check_needed(options, type(options)(), dict.fromkeys(given, ("a",)))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (t2i.PartiOptions(keep_rows=0.3), ("init",)),
        (t2i.MaskGitOptions(strength=0.3), ("init",)),
        (t2i.MaskGitOptions(feather=2.0, outpaint=(0, 0, 0.5, 0)), ("init",)),
        (t2i.MaskGitOptions(edit_share=0.2, edit_steps=3), ("init",)),
        (t2i.MaskGitOptions(overlap=0.2, image_size=512), ()),
        (t2i.ImagenOptions(start_at=2), ("start",)),
        (t2i.DALLE2Options(prior_steps=3), ()),
        (t2i.MaskGitOptions(overlap=0.2, image_size=64), ()),
        (t2i.MuseOptions(growing=False, edit_steps=2), ("init",)),
    ],
)
def test_an_option_that_has_an_effect_is_not_refused(options, given):
    sample._check_needed(options, type(options)(), dict.fromkeys(given, ("a",)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (t2i.PartiOptions(guidance=1, plausibility=0.3), "plausibility=0.3 has no effect with gui"),
        (t2i.PartiOptions(temperature=0, top_k=5), "top_k=5 has no effect with temperature=0"),
        (t2i.MaskGitOptions(guidance=1, growing=False), "growing=False has no effect with guid"),
        (t2i.MuseOptions(guidance=1, growing=False), "growing=False has no effect with guidance=1"),
        (t2i.MuseOptions(guidance=1, superres_guidance=3, growing=False), ""),
        (t2i.ImagenOptions(guidance=(1, 1), parallel=0.0), "parallel=0.0 has no effect with gui"),
        (t2i.ImagenOptions(guidance=(1, 2), parallel=0.0), ""),
    ],
)
def test_an_option_that_another_value_leaves_without_an_effect_is_told(options, told, capfd):
    sample._check_needed(options, type(options)(), {})
    said = capfd.readouterr().err
    assert told in said if told else not said


@pytest.mark.parametrize(
    ("kind", "changes", "given", "told"),
    [
        (
            t2i.MuseOptions,
            {"superres_steps": 3, "stop_at": "base"},
            {},
            "superres_steps=3 does not",
        ),
        (t2i.DALLE2Options, {"prior_steps": 3}, {"image_embeds": 0}, "nothing beside image_embeds"),
        (
            t2i.PartiOptions,
            {"keep_rows": 0.3},
            {"init_images": 0, "known_rows": 1},
            "known_rows; l",
        ),
        (t2i.PartiOptions, {"keep_rows": 0.3}, {"init_images": 0, "known_rows": None}, ""),
    ],
)
def test_in_python_what_does_nothing_beside_something_is_told(kind, changes, given, told, capfd):
    calls.with_changes(kind, None, changes, given)
    said = capfd.readouterr().err
    assert told in said if told else not said
    with pytest.raises(UserError, match="is nothing without"):
        calls.with_changes(t2i.PartiOptions, None, {"keep_rows": 0.3}, {})


@pytest.mark.parametrize(
    "task",
    [t2i.PartiTask, t2i.MaskGitTask, t2i.MuseTask, t2i.ImagenTask, t2i.DecoderTask, t2i.DALLE2Task],
)
def test_what_options_need_and_do_nothing_beside_are_fields_or_inputs_of_sample(task):
    in_python = ("other_images", "known_rows", "image_embeds")
    known = {*fields_of(task.options), *sample._INPUTS, *in_python}
    for name in ("needs", "idle_with"):
        for option, others in getattr(task.options, name, {}).items():
            assert option in fields_of(task.options) and known.issuperset(others), (option, others)


def _of_command(words):
    """The function of a command's words, its arguments, and its name."""
    found, name = COMMANDS, "t2i"
    while not isinstance(found, str):
        found, name, words = found[words[0]], f"{name} {words[0]}", words[1:]
    module, _, function = found.partition(":")
    home = __import__(f"t2i_jax.cli.{module}", fromlist=[function])
    return getattr(home, function), words, name


def test_the_commands_that_recipes_tell_are_commands():
    configs = pathlib.Path(__file__).parents[2] / "configs"
    for path in sorted(configs.rglob("*.py")):
        told = (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\\\n", " ")
        assert not re.search(r"^ *\w+\.[\w.]+=", told, re.MULTILINE), path  # the end of a command
        lines = re.findall(r"^ *t2i (.*)$", told, re.MULTILINE)
        for command in (one for line in lines for one in line.split(" && ")):
            words = shlex.split(command.removeprefix("t2i "), comments=True)
            if words[0] == "sample":  # its options are those of the run
                continue
            function, rest, name = _of_command(words)
            arguments.parsed(arguments.arguments_of(function), rest, name)
