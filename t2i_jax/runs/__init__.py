"""A run: trained from a recipe into a folder, loaded, measured, exported, converted."""

import importlib
from typing import TYPE_CHECKING, Any

# Where the names live; imported on first use, for training needs no converter and loading no
# trainer.
_HOMES = {
    "Recipe": "recipe",
    "evaluate": "evaluation",
    "export": "folder",
    "export_torch": "torch",
    "fingerprint": "folder",
    "import_torch": "torch",
    "load": "folder",
    "load_recipe": "recipe",
    "load_run_recipe": "folder",
    "train": "training",
}

if TYPE_CHECKING:
    from t2i_jax.runs.evaluation import evaluate as evaluate
    from t2i_jax.runs.folder import export as export
    from t2i_jax.runs.folder import fingerprint as fingerprint
    from t2i_jax.runs.folder import load as load
    from t2i_jax.runs.folder import load_run_recipe as load_run_recipe
    from t2i_jax.runs.recipe import Recipe as Recipe
    from t2i_jax.runs.recipe import load_recipe as load_recipe
    from t2i_jax.runs.torch import export_torch as export_torch
    from t2i_jax.runs.torch import import_torch as import_torch
    from t2i_jax.runs.training import train as train


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
