"""The PyTorch reference packages, importable on a CPU-only machine without a hub."""

import contextlib
import importlib
import warnings

import pytest

_T5_WIDTHS = {"t5-small": 512, "t5-base": 768, "t5-large": 1024, "google/t5-v1_1-base": 768}
_library = []  # the operator declarations live as long as this list


def load(package: str):
    """Imports a reference package; skips the test, with the reason, where it is not installed."""
    torch = pytest.importorskip("torch", reason="the parity tests need the 'test' extra")
    _declare_operators(torch)
    _serve_t5_configs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(package)


def _declare_operators(torch):
    """torchvision's wheel expects two compiled operators that a CPU-only torch lacks; a schema is
    enough to import it.
    """
    if _library:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # a matching build declared it already
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.append(library)


def _serve_t5_configs():
    """The packages ask the hub for the width of a T5 while they are imported or built; answer from
    a table.
    """
    import transformers

    def from_pretrained(name, *args, **kwargs):
        if name not in _T5_WIDTHS:
            raise OSError(f"no T5 configuration for {name!r} in the tests")
        return transformers.T5Config(d_model=_T5_WIDTHS[name])

    transformers.T5Config.from_pretrained = staticmethod(from_pretrained)
