"""A run: trained from a recipe into a folder, loaded, measured, exported, converted."""

from t2i_jax.runs.evaluation import evaluate
from t2i_jax.runs.folder import export, fingerprint, load, load_run_recipe
from t2i_jax.runs.recipe import Recipe, load_recipe
from t2i_jax.runs.torch import export_torch, import_torch
from t2i_jax.runs.training import train

__all__ = [
    "Recipe",
    "evaluate",
    "export",
    "export_torch",
    "fingerprint",
    "import_torch",
    "load",
    "load_recipe",
    "load_run_recipe",
    "train",
]
