"""What a program asks of the device for its products."""


def check_highest(lowered, least: int) -> None:
    """Each product of matrices and each convolution of a lowered program asks for the precision
    "highest". A CPU computes them all alike: the program's text alone tells what a TPU or a GPU
    would do.

    Args:
      lowered: of `jax.jit(...).lower(...)`.
      least: products that there are, or more.
    """
    kinds = "stablehlo.dot_general", "stablehlo.convolution("
    lines = lowered.as_text().splitlines()
    products = [line for line in lines if any(kind in line for kind in kinds)]
    assert len(products) >= least
    assert all("HIGHEST" in line and "DEFAULT" not in line for line in products)
