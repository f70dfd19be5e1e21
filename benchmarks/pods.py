"""The tables of docs/pods.md: training steps compiled for TPU slices that are not there.

    python benchmarks/pods.py               # all rows; one takes minutes, and up to some 10 GB
    python benchmarks/pods.py 3b_v4 20b_v5p # these alone; the others stay as they were measured

Measurements are kept in docs/pods.json, and the tables in docs/pods.md are written from there. A
row with "before" there was measured before a change that docs/pods.md names, and is marked.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_FIGURES, _PAGE = _ROOT / "docs" / "pods.json", _ROOT / "docs" / "pods.md"

GENERATIONS = ("v4", "v5e", "v5p", "v6e")
SLICES = {  # chips: a slice of each generation
    32: ("v4:4x4x2", "v5e:4x8", "v5p:4x4x2", "v6e:4x8"),
    64: ("v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8"),
    128: ("v4:4x4x8", "v5e:8x16", "v5p:4x4x8", "v6e:8x16"),
    256: ("v4:8x8x4", "v5e:16x16", "v5p:4x8x8", "v6e:16x16"),
    512: ("v4:8x8x8", "2*v5e:16x16", "v5p:8x8x8", "2*v6e:16x16"),
}
RECIPES = {  # recipe and chips
    "350m": ("configs/parti/paper_350m.py", 128),
    "750m": ("configs/parti/paper_750m.py", 256),
    "3b": ("configs/parti/paper_3b.py", 512),
    "20b": ("configs/parti/paper_20b.py", 512),
    "vit_vqgan": ("configs/parti/paper_vit_vqgan.py", 128),
    "muse_632m": ("configs/muse/paper_632m.py", 32),
    "muse_3b": ("configs/muse/paper_3b.py", 32),
    "muse_superres": ("configs/muse/paper_superres.py", 128),
    "clip_l14": ("configs/clip/paper_vit_l14.py", 256),
    "prior": ("configs/dalle2/paper_prior.py", 64),
    "decoder": ("configs/dalle2/paper_decoder.py", 128),
    "decoder_larger": ("configs/dalle2/paper_larger.py", 64),
    "decoder_largest": ("configs/dalle2/paper_largest.py", 64),
    "base": ("configs/imagen/paper_base.py", 128),
    "larger": ("configs/imagen/paper_larger.py", 32),
    "largest": ("configs/imagen/paper_largest.py", 128),
}
PAPERS = {
    f"{name}_{generation}": (config, topology, [])
    for name, (config, chips) in RECIPES.items()
    for generation, topology in zip(GENERATIONS, SLICES[chips], strict=True)
}
SCALING = {  # weak scaling: two images per chip
    f"3b_{chips}": ("configs/parti/paper_3b.py", f"v5p:{shape}", [f"train.batch_size={2 * chips}"])
    for chips, shape in ((64, "4x4x4"), (256, "4x8x8"), (1024, "8x8x16"), (4096, "16x16x16"))
}
SAMPLING = {  # guided images of one program
    f"sample_{name}": (RECIPES[name][0], topology, ["--generate", str(count), "--mesh", mesh])
    for name, topology, count, mesh in (
        ("350m", "v5e:2x2", 16, "tensor=4"),
        ("3b", "v4:2x2x2", 16, "tensor=8"),
        ("20b", "v5p:2x2x2", 16, "tensor=8"),
        ("muse_632m", "v5e:2x2", 16, "data=4"),
        ("muse_3b", "v4:2x2x2", 16, "data=8"),
        ("muse_superres", "v5e:2x2", 16, "data=4"),
        ("base", "v5e:2x2", 64, "data=4"),
    )
}


def measure(config: str, topology: str, more: list[str]) -> dict:
    """The measurements of one `t2i compile`, with the seconds and the memory (GB) that it took."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "t2i_jax.cli.main",
            "compile",
            config,
            *more,
            "--topology",
            topology,
        ]
        start = time.monotonic()
        process = subprocess.Popen(
            [*command, "--json", str(out)], cwd=_ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}
        )
        _, status, used = os.wait4(process.pid, 0)
        if not out.is_file():
            sys.exit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        took = {"took_seconds": time.monotonic() - start, "took_gb": used.ru_maxrss / 1e6}
        report = json.loads(out.read_text())
        # of the one stage that each recipe has
        [figures] = report.values() if "--generate" in more else [report]
        return {"config": config, "more": more, **figures, **took}


def papers(figures: dict) -> str:
    """The table of recipes at the papers' sizes."""
    head = (
        "recipe",
        "slice",
        "chips",
        "arguments GiB",
        "peak GiB",
        "HBM GiB",
        "TFLOP",
        "HBM traffic GB",
        "collective GB",
        "compute s",
        "memory s",
        "interconnect s",
        "MFU",
        "compile s",
        "compile GB",
    )
    rows = []
    for name in PAPERS:
        if (one := figures.get(name)) is None:
            continue
        peak = f"{one['peak']:.1f}" if one["fits"] else f"does not fit ({one['peak']:.0f})"
        rows.append(
            (
                _marked(f"`{one['config']}`", one),
                one["topology"],
                one["chips"],
                f"{one['arguments']:.2f}",
                peak,
                f"{one['hbm']:.0f}",
                f"{one['flops'] / 1e12:.1f}",
                f"{one['traffic'] / 1e9:.0f}",
                f"{sum(one['collectives'].values()) / 1e9:.2f}",
                f"{one['compute']:.3f}",
                f"{one['memory']:.3f}",
                f"{one['interconnect']:.3f}",
                f"{one['mfu']:.0%}",
                f"{one['took_seconds']:.0f}",
                "" if one["took_gb"] is None else f"{one['took_gb']:.1f}",
            )
        )
    return _table(head, rows)


def scaling(figures: dict) -> str:
    """The table of one recipe on more and more chips."""
    head = (
        "chips",
        "slice",
        "batch",
        "peak GiB",
        "TFLOP",
        "HBM traffic GB",
        "collective GB",
        "roofline s",
        "compile s",
    )
    rows = []
    for name in SCALING:
        if (one := figures.get(name)) is None:
            continue
        step = max(one["compute"], one["memory"], one["interconnect"])
        rows.append(
            (
                _marked(one["chips"], one),
                one["topology"],
                one["more"][0].split("=")[1],
                f"{one['peak']:.2f}",
                f"{one['flops'] / 1e12:.2f}",
                f"{one['traffic'] / 1e9:.1f}",
                f"{sum(one['collectives'].values()) / 1e9:.2f}",
                f"{step:.3f}",
                f"{one['took_seconds']:.0f}",
            )
        )
    return _table(head, rows)


def sampling(figures: dict) -> str:
    """The table of sampling programs."""
    head = (
        "recipe",
        "slice",
        "mesh",
        "images in a batch",
        "arguments GiB",
        "peak GiB",
        "HBM GiB",
        "TFLOP",
        "HBM traffic GB",
        "collective GB",
        "roofline s",
        "compile s",
    )
    rows = []
    for name in SAMPLING:
        if (one := figures.get(name)) is None:
            continue
        step = max(one["compute"], one["memory"], one["interconnect"])
        rows.append(
            (
                _marked(f"`{one['config']}`", one),
                one["topology"],
                one["more"][3],
                one["more"][1],
                f"{one['arguments']:.2f}",
                f"{one['peak']:.1f}" if one["fits"] else "does not fit",
                f"{one['hbm']:.0f}",
                f"{one['flops'] / 1e12:.1f}",
                f"{one['traffic'] / 1e9:.0f}",
                f"{sum(one['collectives'].values()) / 1e9:.2f}",
                f"{step:.2f}",
                f"{one['took_seconds']:.0f}",
            )
        )
    return _table(head, rows)


def plot(figures: dict) -> None:
    """docs/pods.png: per chip FLOPs, memory and collective bytes, over the number of chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [figures[name] for name in SCALING if name in figures]
    chips = [one["chips"] for one in found]
    kinds = {
        "TFLOP": [one["flops"] / 1e12 for one in found],
        "peak GiB": [one["peak"] for one in found],
        "collective GB": [sum(one["collectives"].values()) / 1e9 for one in found],
    }
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(9, 2.6), layout="constrained")
    for axis, (kind, values) in zip(axes, kinds.items(), strict=True):
        axis.plot(chips, values, marker="o")
        axis.set(
            xscale="log",
            xlabel="chips",
            title=f"{kind} per chip and step",
            ylim=(0, 1.25 * max(values)),
        )
        axis.set_xticks(chips, [str(count) for count in chips])
        axis.minorticks_off()
    figure.savefig(_FIGURES.with_suffix(".png"), dpi=110)


def _marked(cell, one):
    return f"{cell} †" if one.get("before") else cell


def _table(head, rows):
    def line(cells):
        return "| " + " | ".join(map(str, cells)) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _between(page, mark, text):
    start, end = f"<!-- {mark} -->\n", f"\n<!-- end of {mark} -->"
    before, rest = page.split(start)
    return before + start + text + end + rest.split(end)[1]


if __name__ == "__main__":
    rows = PAPERS | SCALING | SAMPLING

    def stored():
        return json.loads(_FIGURES.read_text()) if _FIGURES.is_file() else {}

    for name in sys.argv[1:] or rows:
        if name not in rows:
            sys.exit(f"row={name!r} is not known; known: {', '.join(rows)}.")
        found = measure(*rows[name])
        _FIGURES.write_text(json.dumps({**stored(), name: found}, indent=1) + "\n")
    figures = stored()
    page = _between(_PAGE.read_text(), "papers", papers(figures))
    page = _between(page, "scaling", scaling(figures))
    _PAGE.write_text(_between(page, "sampling", sampling(figures)))
    if any(name in figures for name in SCALING):
        plot(figures)
