"""README.md and the pages under docs/ tell what is true: all that they show runs.

Every python block of a page runs, in order, in one namespace per page; every `t2i` and `dream`
command runs, page by page, in one folder; every refusal that is shown is the true sentence. What is
shown at full size runs at toy size.
"""

import dataclasses
import functools
import html
import inspect
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import t2i_jax
from t2i_jax import config, runs, systems
from t2i_jax.aot import ahead
from t2i_jax.cli import docstring, dream
from t2i_jax.cli import main as cli
from t2i_jax.cli.compile import compile_for
from t2i_jax.runs.recipe import load_recipe
from tests.e2e import tiny, tiny_dalle2, tiny_imagen, tiny_muse, tiny_t5
from tests.parity import flax_models, muse_models

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# In the order in which their commands run; a page may use the runs of the pages above it.
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/data.md",
    "docs/training.md",
    "docs/sampling.md",
    "docs/evaluation.md",
    "docs/benchmarks_of_prompts.md",
    "docs/muse.md",
    "docs/from_pytorch/parti-pytorch.md",
    "docs/from_pytorch/imagen-pytorch.md",
    "docs/from_pytorch/vqgan.md",
    "docs/from_pytorch/muse-maskgit-pytorch.md",
    "docs/from_pytorch/x-clip.md",
    "docs/dalle2.md",
    "docs/from_pytorch/dalle2-pytorch.md",
    "docs/pods.md",
    "docs/first_pod.md",
    "docs/architecture.md",
    "docs/adding_a_system.md",
    "docs/api.md",
    "CONTRIBUTING.md",
)
_TEXT = {page: (_ROOT / page).read_text(encoding="utf-8") for page in PAGES}

# What the pages show at full size, and the toy size that is run. Each must occur in some page.
# Averages of parameters are left to other tests: they are a fourth of what a step compiles.
_SMALLER = {
    "dim=256, image_size=256, patch_size=16, num_layers=3":
        "dim=8, image_size=16, patch_size=4, num_layers=1, heads=1, dim_head=8, ff_mult=1, "
        "codebook_size=16, discr_layers=0",
    "dim=256, image_size=128, vq_codebook_size=512":
        "dim=16, image_size=16, layers=2, num_resnet_blocks=0, vq_codebook_size=16, "
        "discr_layers=0",
    "image_size=256, patch_size=8, dim=512, layers=8, heads=8, mlp_dim=2048":
        "image_size=16, patch_size=4, dim=8, layers=1, heads=1, mlp_dim=16, codebook_size=16",
    "dim=512, depth=8, dim_head=64, heads=8": "dim=16, depth=1, dim_head=8, heads=2",
    "dim=512, depth=6, dim_head=64, heads=8": "dim=16, depth=1, dim_head=8, heads=2",
    "dim=128,\n    cond_dim=128":
        "dim=8, cond_dim=8, resnet_groups=4, attn_heads=1, attn_dim_head=8, num_resnet_blocks=0, "
        "init_cross_embed=False, init_conv_kernel_size=3, attend_at_middle=False",
    "dim=16,\n    cond_dim=[None, 128],\n    dim_mults=[(1, 2, 4, 8), (1, 2, 4, 8, 16)]":
        "dim=8, cond_dim=8, dim_mults=(1,), resnet_groups=4, attn_heads=1, attn_dim_head=8, "
        "num_resnet_blocks=0, init_cross_embed=False, init_conv_kernel_size=3, "
        "attend_at_middle=False",
    "image_sizes=(256, 512)": "image_sizes=(16, 32)",
    'sampler="ddim", steps=64': 'sampler="ddim", steps=2',
    "dim=512, depth=2, dim_head=64, heads=8": "dim=16, depth=1, dim_head=8, heads=2",
    "dim_text=512,": "dim_text=16, text_dim_head=8, visual_dim_head=8,",
    "dim_image=512,": "dim_image=16,",
    "dim_latent=512,": "dim_latent=8,",
    "num_text_tokens=10000": "num_text_tokens=64",
    "integers(1, 10000, (4, 256))": "integers(1, 64, (4, 8))",
    "text_enc_depth=6": "text_enc_depth=1",
    "text_seq_len=256": "text_seq_len=8",
    "text_heads=8": "text_heads=2",
    "visual_enc_depth=6": "visual_enc_depth=1",
    "visual_image_size=256": "visual_image_size=16",
    "visual_patch_size=32": "visual_patch_size=8",
    "visual_heads=8": "visual_heads=2",
    'VisualSsl("simclr", weight': 'VisualSsl("simclr", hidden_dim=16, weight',
    "dim=1024, depth=12, heads=16, mlp_dim=4096": "dim=16, depth=1, heads=2, mlp_dim=16",
    "vocab_size=16000": "vocab_size=32",
    'preset("muse-f16", image_size=256)':
        'preset("muse-f16", image_size=16, dim=32, dim_mults=(1, 1), codebook_size=16)',
    "StyleDiscriminator(image_size=256)": "StyleDiscriminator(image_size=16, max_width=8)",
    "steps=1_000_000, batch_size=256": "steps=2, batch_size=8, ema_decay=0.0",
    "image_size=256, max_width=512": "image_size=16, max_width=8",
    "image_size=256,": "image_size=16,",
    "image_size=256)": "image_size=16)",
    "(4, 256, 256, 3)": "(4, 16, 16, 3)",
    "(1, 256, 256, 3)": "(1, 16, 16, 3)",
    "steps=100_000, batch_size=32, accumulate=8":
        "steps=2, batch_size=8, accumulate=2, ema_decay=0.0",
    "steps=100_000, batch_size=32)": "steps=2, batch_size=8, ema_decay=0.0)",
    "dim=32,\n    cond_dim=512":
        "dim=8, cond_dim=8, attn_heads=2, attn_dim_head=4, attn_pool_text=False, "
        "attend_at_middle=False, init_cross_embed=False, init_conv_kernel_size=3",
    "dim=32,\n    dim_mults=(1, 2, 4)":
        "dim=8, dim_mults=(1,), attn_heads=2, attn_dim_head=4, attend_at_middle=False, "
        "init_cross_embed=False, init_conv_kernel_size=3",
    "dim=32, dim_mults=(1, 2, 4, 8)": "dim=8, dim_mults=(1,)",
    "(1, 2, 4, 8)": "(1,)",
    "layer_attns=(False, True, True, True)": "layer_attns=False",
    "layer_attns=(False, False, False, True)": "layer_attns=False",
    "layer_attns=(False, False, True)": "layer_attns=False",
    "layer_cross_attns=(False, False, False, True)": "layer_cross_attns=False",
    "num_resnet_blocks=3": "num_resnet_blocks=0",
    "num_resnet_blocks=(2, 4, 8, 8)": "num_resnet_blocks=0",
    "num_resnet_blocks=(2, 4, 8)": "num_resnet_blocks=0",
    "(False, True, True, True)": "(True,)",
    "(False, True, True)": "(True,)",
    "image_sizes=(64, 256)": "image_sizes=(8, 16)",
    "image_sizes=(64, 128)": "image_sizes=(8, 16)",
    "image_size=128,": "image_size=16,",
    "image_size=512": "image_size=32",
    "steps=50_000, batch_size=32, accumulate=8": "steps=2, batch_size=8, ema_decay=0.0",
    "steps=100_000, batch_size=64, accumulate=16": "steps=2, batch_size=8, ema_decay=0.0",
    "steps=200_000, batch_size=16, accumulate=4": "steps=2, batch_size=8, ema_decay=0.0",
    "(1, 256, 256)": "(1, 16, 16)",
    "inpaint_masks[:, :128]": "inpaint_masks[:, :8]",
    "images_per_prompt=16": "images_per_prompt=4",
    "((16, 24), (32, 48))": "((8, 12), (16, 24))",
    "np.arange(32) < 16, (32, 32)": "np.arange(16) < 8, (16, 16)",
    "np.arange(64) < 32, (64, 64)": "np.arange(16) < 8, (16, 16)",
    "t2i.MuseOptions(steps=12, superres_steps=8, ": "t2i.MuseOptions(steps=2, superres_steps=2, ",
    "steps=8, return_steps=True": "steps=2, return_steps=True",
    "edit_steps=40": "edit_steps=2",
}  # fmt: skip


_SCRIPTS = {"t2i": cli.main, "dream": dream.start}

_TINY_LARGER = [
    "train.steps=2",
    "train.ema_decay=0",
    "train.batch_size=2",
    "task.model.channels=4",
    "task.model.blocks=1",
    "task.image_size=16",
    "data.image_size=16",
    "evaluation.preview=2",
    "evaluation.pictures=2",
]
# Recipes in place of which a tiny one runs, whose programs other tests compile too.
_TINY_RECIPES = {
    "configs/parti/shapes.py": "tests/e2e/tiny.py",
    "configs/parti/digits.py": "tests/e2e/tiny.py",
    "configs/parti/photos.py": "tests/e2e/tiny.py",
    "configs/imagen/shapes.py": "tests/e2e/tiny_imagen.py",
    "configs/dalle2/shapes.py": "tests/e2e/tiny_dalle2.py",
    "configs/muse/shapes.py": "tests/e2e/tiny_muse.py",
    "configs/muse/shapes_critic.py": "tests/e2e/tiny_critic.py",
}
# What is added to the overrides of a command that trains: what the recipe of that name says of its
# data, so that the programs stay those of the tiny recipe.
_TRAINED_WITH = {
    "configs/parti/shapes.py": ["train.steps=4"],
    "configs/parti/digits.py": [
        "data.source=digits",
        "tokenizer.data.source=digits",
        "evaluation.judge=digits",
    ],
    "configs/parti/photos.py": [
        "data.heldout=0.05",
        "data.crop=random",
        "tokenizer.data.heldout=0.05",
        "tokenizer.data.crop=random",
        "evaluation.judge=None",
    ],
    "configs/parti/super_resolution.py": _TINY_LARGER,
}


def _changes(command):
    """What is added to the overrides of a command."""
    if command[1] == "train":
        is_tiny = command[2] in _TINY_RECIPES or "toy" in command[2]
        assert is_tiny or command[2] in _TRAINED_WITH, f"{command} would train at full size"
        return _TRAINED_WITH.get(command[2], [])
    return ["evaluation.pictures=8"] if command[1] == "eval" else []


def blocks(page, language):
    """The blocks of a page in a language; those with a title are files, tested elsewhere."""
    return re.findall(rf"^```{language}\n(.*?)^```$", _TEXT[page], re.MULTILINE | re.DOTALL)


def commands(page):
    """The `t2i` and `dream` commands of a page, as lists of words."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.split(" ")[0] in _SCRIPTS]


def refusals(page):
    """(command, sentence) of each mistake that a page shows."""
    shown = "\n".join(blocks(page, "console"))
    return re.findall(r"^\$ (t2i .*)\n(t2i: .*)$", shown, re.MULTILINE)


def _with(what):
    return [page for page in PAGES if what(page)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages speak of: three runs, photos, a T5, the recipes."""
    here = tmp_path_factory.mktemp("docs")
    runs.train(tiny.get_config(), here / "runs" / "quickstart")
    larger = load_recipe(_ROOT / "configs" / "parti" / "super_resolution.py")
    runs.train(config.override(larger, _TINY_LARGER), here / "runs" / "larger")
    runs.train(tiny_imagen.get_config(), here / "runs" / "imagen")
    runs.train(tiny_muse.get_config(), here / "runs" / "muse")
    runs.train(tiny_dalle2.get_config(), here / "runs" / "dalle2")
    _photos(here / "photos")
    muse_models.save(here / "maskgit.pt")
    flax_models.save(here)
    captions = re.findall(r'^    +"([a-z ,-]+)",$', "\n".join(_TEXT.values()), re.MULTILINE)
    tiny_t5.save(here / "t5-large", captions)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(here / "picture.png")
    half = np.where(np.arange(40) < 20, 255, 0).astype(np.uint8)
    Image.fromarray(np.broadcast_to(half, (30, 40))).save(here / "mask.png")
    (here / "prompts.txt").write_text("a red circle\na blue square\n")
    for folder in ("configs", "tests"):
        (here / folder).symlink_to(_ROOT / folder)
    return here


def _photos(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"picture number {i}")


def test_every_toy_size_is_that_of_something_shown():
    shown = "\n".join(text for page in PAGES for text in blocks(page, "python"))
    assert not [large for large in _SMALLER if large not in shown]


def test_every_page_is_here():
    pages = {path.relative_to(_ROOT).as_posix() for path in (_ROOT / "docs").rglob("*.md")}
    assert pages | {"README.md", "CONTRIBUTING.md"} == set(PAGES)
    assert len(_TEXT["README.md"].splitlines()) <= 200


def _homes():
    """By public name its module, without what systems of the tests have registered."""
    homes = t2i_jax.homes().items()
    return {name: home for name, home in homes if home.startswith(t2i_jax.__name__ + ".")}


def test_every_public_name_is_on_the_page_of_the_api():
    shown = set(re.findall(r"^::: (\S+)$", (_ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    named = {f"{home}.{name}" for name, home in _homes().items()}
    named |= {f"{runs.__name__}.{name}" for name in dir(runs) if name != "Recipe"}
    assert not named - shown


def test_every_field_of_a_public_class_is_described():
    for name in _homes():
        kind = getattr(t2i_jax, name)
        if dataclasses.is_dataclass(kind):
            fields = config.fields_of(kind)
            told = docstring.of_names(kind, fields)
            assert not {f for f in fields if not told.get(f, "").endswith((".", ")"))}, name


@pytest.mark.parametrize("page", _with(lambda page: blocks(page, "python")))
def test_every_python_block_runs(place, monkeypatch, page):
    monkeypatch.chdir(place)
    text = "\n\n".join(blocks(page, "python"))
    for shown, run in _SMALLER.items():
        text = text.replace(shown, run)
    names = {}
    exec(compile(text, page, "exec"), names)
    if check := _CHECKS.get(page):
        check(names)


def _readme(names):
    assert names["images"].shape == (1, 16, 16, 3) and names["larger"].shape == (1, 32, 32, 3)


def _sampling(names):
    np.testing.assert_array_equal(names["safer"], names["same"])
    assert len(names["pil_images"]) == 8 and names["completed"].shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(names["inpainted"][:, :, :8], names["images"][:, :, :8])
    assert names["small"].shape == (1, 8, 8, 3) and names["larger"].shape == (1, 16, 16, 3)
    assert names["wide"].shape == (1, 16, 24, 3)


def _parti_pytorch(names):
    assert names["images"].shape == (4, 16, 16, 3) and len(names["pil_images"]) == 3
    assert np.isfinite(names["loss"])


def _imagen_pytorch(names):
    assert np.isfinite(names["loss"]) and len(names["pil_images"]) == 4
    assert np.isfinite(names["valid_loss"])
    np.testing.assert_array_equal(names["inpainted"][:, :8], names["inpaint_images"][:, :8])


def _muse_maskgit_pytorch(names):
    assert np.isfinite(names["loss"]) and names["images"].shape == (4, 16, 16, 3)
    assert names["large_images"].shape == (4, 32, 32, 3) and len(names["pil_images"]) == 4


def _x_clip(names):
    assert np.isfinite(names["loss"]) and names["scores"].shape == (4, 2)
    assert np.allclose(np.linalg.norm(names["vectors"], axis=1), 1, atol=1e-5)
    assert set(names["names"]) <= set(names["captions"])


def _dalle2_pytorch(names):
    assert np.isfinite(names["prior_loss"]) and np.isfinite(names["decoder_loss"])
    assert names["images"].shape == (1, 32, 32, 3) and names["small"].shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(names["large"], names["large_images"])
    assert isinstance(names["dalle2"].task, t2i_jax.DALLE2Task)
    assert names["dalle2"].decoder.task == names["trained"].task  # of the run that was just made


def _dalle2(names):
    assert names["images"].shape == (4, 16, 16, 3) and names["varied"].shape == (2, 16, 16, 3)
    assert names["between"].shape == (3, 16, 16, 3) and names["changed"].shape == (1, 16, 16, 3)
    assert set(names["told"]) <= set(names["captions"])


def _architecture(names):
    assert names["logits"].shape == (4, 16, 16) and np.isfinite(names["loss"])
    assert names["decoded"].shape == (4, 16, 16, 3) and names["generated"].dtype == np.uint8
    assert np.isfinite(names["generator_loss"]) and np.isfinite(names["discriminator_loss"])


def _muse(names):
    assert names["small"].shape == (1, 8, 8, 3) and names["large"].shape == (1, 16, 16, 3)
    assert len(names["steps"]) == 2
    np.testing.assert_array_equal(names["completed"][:, :, :4], names["images"][:, :, :4])


_CHECKS = {
    "README.md": _readme,
    "docs/sampling.md": _sampling,
    "docs/muse.md": _muse,
    "docs/from_pytorch/parti-pytorch.md": _parti_pytorch,
    "docs/from_pytorch/imagen-pytorch.md": _imagen_pytorch,
    "docs/from_pytorch/muse-maskgit-pytorch.md": _muse_maskgit_pytorch,
    "docs/from_pytorch/x-clip.md": _x_clip,
    "docs/dalle2.md": _dalle2,
    "docs/from_pytorch/dalle2-pytorch.md": _dalle2_pytorch,
    "docs/architecture.md": _architecture,
}


@pytest.mark.parametrize("page", _with(commands))
def test_every_command_runs(place, monkeypatch, capsys, page):
    monkeypatch.chdir(place)
    monkeypatch.setattr("t2i_jax.cli.compile.compile_for", _no_compiling)
    monkeypatch.setattr("t2i_jax.heap.keep_freed_memory", lambda: False)  # for processes that begin
    monkeypatch.setitem(systems.SYSTEMS, "toy", "tests.toy_system")
    for command in commands(page):
        words = [_TINY_RECIPES.get(word, word) for word in command]
        monkeypatch.setattr(sys, "argv", [*words, *_changes(command)])
        try:
            _SCRIPTS[command[0]]()
        except SystemExit as stop:
            assert not stop.code, (command, capsys.readouterr().err)


@functools.wraps(compile_for)
def _no_compiling(*args, **kwargs):
    """`t2i compile` as it is told, without compiling; tests/cli/test_compile.py does it small."""
    given = inspect.signature(compile_for).bind(*args, **kwargs).arguments
    assert load_recipe(given["config"]).task.objectives
    assert re.fullmatch(rf"(\d+\*)?({'|'.join(ahead.GENERATIONS)}):\d+(x\d+)+", given["topology"])


def test_the_commands_are_all_shown():
    shown = {command[1] for page in PAGES for command in commands(page)}
    assert {"train", "eval", "sample", "export", "data", "convert", "compile"} <= shown


def test_every_script_that_is_named_is_there():
    lines = "\n".join(text for page in PAGES for text in blocks(page, "bash"))
    scripts = set(re.findall(r"^bash (\S+)", lines, re.MULTILINE))
    assert {"launch/quickstart.sh", "launch/test.sh", "launch/tpu_vm.sh"} <= scripts
    for script in scripts:
        subprocess.run(["bash", "-n", _ROOT / script], check=True)


@pytest.mark.parametrize("page", _with(refusals))
def test_wrong_input_gets_the_sentences_shown(place, monkeypatch, capfd, page):
    monkeypatch.chdir(place)
    for command, sentence in refusals(page):
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2, command
        assert capfd.readouterr().err.splitlines() == [sentence]


def test_links_of_the_readme_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _TEXT[page]):
            assert (_ROOT / target).exists(), target


def test_the_pages_build_without_a_warning(tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's own notice
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    api = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("load", "Recipe", "PartiOptions", "ImagenOptions", "SystemTask"):
        assert re.search(rf'id="t2i_jax\.[\w.]*\b{name}"', api), name
    walk = re.sub(r"<[^>]+>", "", (site / "adding_a_system" / "index.html").read_text("utf-8"))
    for name in ("ToyTask", "MeanColourTask", "ToyOptions", "ToySystem"):
        assert f"class {name}" in html.unescape(walk), name  # the code itself, not its include
