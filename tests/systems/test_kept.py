"""What is said of the tokens and latents that masks keep."""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.systems import kept


@pytest.mark.parametrize("size", [(8, 12), (24, 60)])
def test_what_is_told_are_the_whole_tokens_and_the_kept_pixels_beside_them(capsys, size):
    grid = (4, 6)
    sides = height, width = (size[0] // grid[0], size[1] // grid[1])
    keep = np.random.default_rng(0).uniform(size=(2, *size)) > 0.02
    known = kept.whole(keep, grid)
    for image, row, column in np.ndindex(known.shape):
        down, right = row * height, column * width
        part = keep[image, down : down + height, right : right + width]
        assert known[image, row, column] == part.all()
    kept.tell(known, keep, "token", "It", "mask keeps no token, and it")
    anew = keep.sum() - known.sum() * height * width
    assert capsys.readouterr().err == (
        f"t2i: It keeps whole tokens, {width}x{height} pixels each: {known.sum()} of 48; {anew:,} "
        "kept pixels beside them are inpainted.\n"
    )
    # of a mask of another size than the images, pixels are those of the mask
    kept.tell(known, known, "latent", "It", "", size=sides)
    assert capsys.readouterr().err.endswith(f"pixels each: {known.sum()} of 48.\n")


def test_an_image_of_which_nothing_is_kept_is_refused_with_the_size_that_is():
    keep = np.stack([np.ones((4, 6), bool), np.eye(4, 6) > 0])
    with pytest.raises(UserError) as refused:
        kept.tell(kept.whole(keep, (2, 2)), keep, "token", "It", "mask keeps no token, and it")
    assert str(refused.value) == (
        "mask keeps no token, and it keeps whole tokens, 3x2 pixels each; keep a larger part."
    )
