"""Parti on the embedded set `shapes`, the recipe of the quickstart.

    t2i train configs/parti/shapes.py
"""

from t2i_jax.quickstart import get_config

__all__ = ["get_config"]
