"""Options of weights, and printed lines, that the commands which measure share."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

from t2i_jax.cli.arguments import Shown

WeightsFile = Annotated[pathlib.Path | None, Shown("FILE")]
WeightsFolder = Annotated[pathlib.Path | None, Shown("DIR")]


def print_metrics(metrics: Mapping[str, float | None]) -> None:
    """A line for each metric of a run; None, as metrics.json has it, is not finite either."""
    for name, value in metrics.items():
        is_finite = value is not None and math.isfinite(value)
        print(f"{name}: {value:.4g}" if is_finite else f"{name}: not finite")


def print_results(results: Mapping[str, Any] | None, out: pathlib.Path) -> None:
    """The numbers with their intervals, what was left out, and where they are kept.

    Args:
      results: as results.json has them; None, as every process but the first has it: nothing.
      out: the folder of results.json.
    """
    if not results:
        return
    for one in results["metrics"]:
        span = one["interval"]
        told = "" if span is None else f" [{span['low']:.4g}, {span['high']:.4g}]"
        against = f" against {one['n_reference']:,}" if one["n_reference"] else ""
        print(f"{one['name']}: {one['value']:.6g}{told} ({one['n_generated']:,} images{against})")
    for name, about in results["generated"].items():
        print_left_out(name, about["left_out"])
    images = results["images"].get("of") or results["images"]
    print_left_out("images", images.get("passed_over"), "passed over")
    print_reference(results)
    print(f"results: {out / 'results.json'}")


def print_reference(results: Mapping[str, Any]) -> None:
    """Prints what the reference has left out and passed over, once for all that compare with it."""
    told = [one["reference"] for one in results["metrics"] if one["reference"]]
    for how in ("left out", "passed over") if told else ():
        print_left_out("reference", told[0].get(how.replace(" ", "_")), how)


def print_left_out(what: str, counts: Mapping[str, int] | None, how: str = "left out") -> None:
    """Prints how many of `what` were left out, by reason; nothing where there are none."""
    if counts:
        told = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        print(f"{what}: {how} {told}")
