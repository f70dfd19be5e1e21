"""Executes notebooks, each in an empty folder, and writes what a screen shows at the end into them.

python notebooks/execute.py notebooks/quickstart_colab.ipynb

A run that was trained before by the same recipe stands where the notebook has its `WORKDIR`, as a
copy, and the cell that trains resumes it:

python notebooks/execute.py --run runs/dalle2=FOLDER notebooks/dalle2_embeddings.ipynb
"""

import argparse
import pathlib
import resource
import shutil
import tempfile
import time

import nbclient
import nbformat


def execute(path: pathlib.Path, folder: str) -> None:
    """Runs a notebook's cells in `folder`, and overwrites the notebook with what they show."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=7200,
        kernel_name="python3",
        coalesce_streams=True,  # of a progress bar the last state stays
        record_timing=False,
        resources={"metadata": {"path": folder}},
    )
    start, used = time.monotonic(), _of_kernels()
    client.on_cell_executed = lambda cell, cell_index, **_: print(
        f"{path.name}: cell {cell_index} after {time.monotonic() - start:.0f} s", flush=True
    )
    client.execute()
    for cell in notebook.cells:
        for out in cell.get("outputs", []):
            if out.output_type == "stream":
                out.text = "\n".join(line.rstrip() for line in out.text.split("\n"))
    nbformat.write(notebook, path)
    print(f"{time.monotonic() - start:.0f} s, of which {_of_kernels() - used:.0f} s of CPU time")


def _of_kernels():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=pathlib.Path)
    parser.add_argument("--run", metavar="WORKDIR=FOLDER", help="a run that is resumed")
    told = parser.parse_args()
    for notebook in told.notebooks:
        with tempfile.TemporaryDirectory() as folder:
            if told.run is not None:
                workdir, _, trained = told.run.partition("=")
                shutil.copytree(trained, pathlib.Path(folder, workdir))
            execute(notebook, folder)
