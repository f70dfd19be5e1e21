"""Every python block of the README runs, in order, in one namespace; every `t2i` command runs, in order, in one folder;
every refusal it shows is the true sentence. What is shown at full size runs at toy size.
"""

import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from t2i_jax import config, runs
from t2i_jax.cli import main as cli
from t2i_jax.runs.recipe import load_recipe
from tests.e2e import tiny, tiny_t5

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")

# What the README shows at full size, and the toy size that is run. Each must occur in the README.
_SMALLER = {
    "dim=256, image_size=256, patch_size=16, num_layers=3":
        "dim=8, image_size=16, patch_size=4, num_layers=1, heads=1, dim_head=8, ff_mult=1, codebook_size=16, "
        "discr_layers=0",
    "image_size=256, patch_size=8, dim=512, layers=8, heads=8, mlp_dim=2048":
        "image_size=16, patch_size=4, dim=8, layers=1, heads=1, mlp_dim=16, codebook_size=16",
    "dim=512, depth=8, dim_head=64, heads=8": "dim=16, depth=1, dim_head=8, heads=2",
    "dim=1024, depth=12, heads=16, mlp_dim=4096": "dim=16, depth=1, heads=2, mlp_dim=16",
    "vocab_size=16000": "vocab_size=32",
    "image_size=256, max_width=512": "image_size=16, max_width=8",
    "image_size=256,": "image_size=16,",
    "image_size=256)": "image_size=16)",
    "(4, 256, 256, 3)": "(4, 16, 16, 3)",
    "(1, 256, 256, 3)": "(1, 16, 16, 3)",
    "steps=100_000, batch_size=32, accumulate=8": "steps=2, batch_size=8, accumulate=2",
    "steps=100_000, batch_size=32)": "steps=2, batch_size=8)",
    "dim=32,\n    cond_dim=512":
        "dim=8, cond_dim=8, attn_heads=2, attn_dim_head=4, attn_pool_num_latents=2, attend_at_middle=False, "
        "init_cross_embed=False, init_conv_kernel_size=3",
    "dim=32,\n    dim_mults=(1, 2, 4)":
        "dim=8, dim_mults=(1, 1), attn_heads=2, attn_dim_head=4, attend_at_middle=False, init_cross_embed=False, "
        "init_conv_kernel_size=3",
    "dim=32, dim_mults=(1, 2, 4, 8)": "dim=8, dim_mults=(1, 1)",
    "(1, 2, 4, 8)": "(1, 1)",
    "num_resnet_blocks=3": "num_resnet_blocks=0",
    "num_resnet_blocks=(2, 4, 8, 8)": "num_resnet_blocks=0",
    "num_resnet_blocks=(2, 4, 8)": "num_resnet_blocks=0",
    "(False, True, True, True)": "(False, True)",
    "(False, False, False, True)": "(False, True)",
    "(False, True, True)": "(False, True)",
    "(False, False, True)": "(False, True)",
    "image_sizes=(64, 256)": "image_sizes=(8, 16)",
    "image_sizes=(64, 128)": "image_sizes=(8, 16)",
    "image_size=128,": "image_size=16,",
    "steps=100_000, batch_size=64, accumulate=16": "steps=2, batch_size=8, accumulate=2",
    "steps=200_000, batch_size=16, accumulate=4": "steps=2, batch_size=8",
    "(1, 256, 256)": "(1, 16, 16)",
    "inpaint_masks[:, :128]": "inpaint_masks[:, :8]",
    "images_per_prompt=16": "images_per_prompt=4",
    "((16, 24), (32, 48))": "((8, 12), (16, 24))",
    "np.arange(32) < 16": "np.arange(16) < 8",
    "half, (32, 32)": "half, (16, 16)",
}  # fmt: skip


_TINY = """train.steps=2 train.batch_size=8 tokenizer.train.steps=2 tokenizer.train.batch_size=8 evaluation.preview=8
    evaluation.pictures=8 tokenizer.evaluation.pictures=8 tokenizer.task.model.dim=8 tokenizer.task.model.layers=1
    tokenizer.task.model.heads=1 tokenizer.task.model.codebook_size=16 task.model.dim=16 task.model.depth=1
    task.model.heads=2 task.text.dim=16 task.text.depth=1 task.text.heads=2 task.text.mlp_dim=16""".split()
_TINY_LARGER = """train.steps=2 train.batch_size=2 task.model.channels=4 task.model.blocks=1 task.image_size=16
    data.image_size=16 evaluation.preview=2 evaluation.pictures=2""".split()


_TINY_IMAGEN = """train.steps=2 train.batch_size=8 train.optim.name=adamw evaluation.preview=4 evaluation.pictures=4
    evaluation.steps=2 evaluation.completions=0 data.image_size=16 task.stages.1.crop_size=8 task.stages.0.image_size=8
    task.stages.1.image_size=16 task.stages.0.unet.dim=8 task.stages.1.unet.dim=8
    task.stages.1.unet.dim_mults=(1,1,1) task.stages.0.unet.num_resnet_blocks=0 task.stages.1.unet.num_resnet_blocks=0
    task.stages.0.unet.layer_attns=False task.stages.0.unet.attend_at_middle=False
    task.stages.1.unet.attend_at_middle=False task.text.dim=16 task.text.depth=1 task.text.heads=2
    task.text.mlp_dim=16""".split()


def _changes(command):
    """What is added to the overrides of a command."""
    if command[1] == "train" and "imagen" in command[2]:
        return _TINY_IMAGEN
    if command[1] == "train":
        return _TINY_LARGER if "super_resolution" in command[2] else _TINY
    return ["evaluation.pictures=8"] if command[1] == "eval" else []


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README speaks of: a run, photos, a T5, the recipes."""
    here = tmp_path_factory.mktemp("readme")
    runs.train(tiny.get_config(), here / "runs" / "quickstart")
    cascade = load_recipe(_ROOT / "configs" / "imagen" / "shapes.py")
    runs.train(config.override(cascade, _TINY_IMAGEN), here / "runs" / "imagen")
    _photos(here / "photos")
    tiny_t5.save(here / "t5-large", re.findall(r'^    +"([a-z ,-]+)",$', _README, re.MULTILINE))
    Image.new("RGB", (40, 30), (200, 30, 30)).save(here / "picture.png")
    half = np.where(np.arange(40) < 20, 255, 0).astype(np.uint8)
    Image.fromarray(np.broadcast_to(half, (30, 40))).save(here / "mask.png")
    (here / "configs").symlink_to(_ROOT / "configs")
    return here


def _photos(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"picture number {i}")


def test_every_python_block_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    text = "\n\n".join(blocks("python"))
    for shown, run in _SMALLER.items():
        assert shown in text, f"no longer in the README: {shown}"
        text = text.replace(shown, run)
    names = {}
    exec(compile(text, "README.md", "exec"), names)  # noqa: S102
    assert names["images"].shape == (4, 16, 16, 3) and len(names["pictures"]) == 4
    assert names["logits"].shape == (4, 16, 16) and np.isfinite(names["loss"])
    assert names["decoded"].shape == (4, 16, 16, 3) and names["painted"].dtype == np.uint8
    assert np.isfinite(names["generator_loss"]) and np.isfinite(names["judge_loss"])
    assert names["small"].shape == (1, 8, 8, 3) and names["larger"].shape == (1, 16, 16, 3)
    assert names["wide"].shape == (1, 16, 24, 3) and np.isfinite(names["valid_loss"])
    np.testing.assert_array_equal(names["inpainted"][:, :8], names["inpaint_images"][:, :8])


def test_every_command_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("t2i ")]
    assert {"train", "eval", "sample", "export"} <= {command[1] for command in commands}
    for command in commands:
        monkeypatch.setattr(sys, "argv", [*command, *_changes(command)])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, (command, capsys.readouterr().err)
    assert (place / "runs" / "photos" / "samples" / "heldout.png").is_file()
    assert len(list((place / "runs" / "quickstart" / "samples" / "seed0").glob("000-*.png"))) == 4


def test_every_script_that_it_names_is_there():
    scripts = re.findall(r"^bash (\S+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n", _ROOT / script], check=True)


def test_wrong_input_gets_the_sentences_shown(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    shown = re.findall(r"^\$ (t2i .*)\n(t2i: .*)$", "\n".join(blocks("console")), re.MULTILINE)
    assert len(shown) >= 5
    for command, sentence in shown:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2, command
        assert capfd.readouterr().err.splitlines() == [sentence]
