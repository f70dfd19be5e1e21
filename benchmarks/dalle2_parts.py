"""Which part of a DALL-E 2 on shapes is to blame for the images that are wrong.

    python benchmarks/dalle2_parts.py runs/dalle2

Alignment, and the share of right shapes in their colours, of the whole; of captions of the training
set; of a decoder that is given the embeddings of true held-out images in place of the prior's; of
other images' embeddings beside the captions; of variations, which are given the embeddings of true
images and no captions, of held-out images, of those of the training set and of held-out images of
one object, of the variation of several that CLIP finds the most similar to its image, and of those
that begin with the noise that leads to their image; and of the second stage alone, behind true
small images.
Last, how well linear classifiers read the forms of one object and of two from CLIP's embeddings.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
from sklearn.linear_model import LogisticRegression

import t2i_jax as t2i
from t2i_jax import runs
from t2i_jax.data import shapes
from t2i_jax.eval.alignment import alignment
from t2i_jax.eval.judge_shapes import JudgeShapes

_PROBED = 4000  # scenes of each split, a third of which hold one object


def main() -> None:
    """Samples, judges, prints a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=96)
    told = parser.parse_args()
    system = t2i.load(told.run)
    scale = runs.load_run_recipe(told.run).evaluation.options.guidance
    options = {"guidance": (scale, 1.0), "batch_size": 48}
    decoder, size = system.decoder, system.decoder.task.stages[-1].image_size
    images, captions = scenes("heldout", told.images, size)
    embeds = system.prior.embed(captions)
    shown, seen = scenes("train", told.images, size)
    side = size // decoder.task.stages[0].image_size
    small = images.reshape(len(images), size // side, side, size // side, side, 3).mean((2, 4))

    def judged(name, made, captions):
        found = alignment(made, captions, JudgeShapes())
        print(f"| {name} | {found['alignment']:.0%} | {found['parts']['shape']:.0%} |", flush=True)

    def row(name, captions, read=True, **given):
        made = decoder.generate(captions if read else None, **{**options, **given})
        judged(name, made, captions)

    print("| given | right images | right shapes |\n|---|---|---|")
    row("held-out captions", captions, image_embeds=embeds)
    row("captions of the training set", seen, image_embeds=system.prior.embed(seen))
    row("embeddings of the true images", captions, images=list(images))
    row("embeddings of other images", captions, images=list(np.roll(images, 1, axis=0)))
    row("embeddings of the true images, no captions", captions, False, images=list(images))
    for best_of in (4, 8, 16):
        made = system.variations(list(images), best_of=best_of, **options)
        judged(f"the same, the most similar of {best_of} by CLIP", made, captions)
    row("embeddings of images of the training set, no captions", seen, False, images=list(shown))
    for eta in (0.1, 0.2, 0.3):
        began = dict(images=list(images), eta=eta, guidance=1.0)
        row(
            f"embeddings and noise of the true images, eta={eta}, guidance=1, no captions",
            captions,
            False,
            **began,
        )
    alone = [i for i, told in enumerate(captions) if "small" in told or "large" in told]
    one, alone_captions = {"images": [images[i] for i in alone]}, [captions[i] for i in alone]
    row("embeddings of one held-out object, no captions", alone_captions, False, **one)
    behind = dict(start_images=list(small.round().astype(np.uint8)), start_at=2, guidance=1.0)
    row("true images of the first stage", captions, image_embeds=embeds, **behind)
    for objects in (1, 2):
        read = probe(system, objects)
        print(f"forms of {objects}, read from CLIP's embedding by linear classifiers: {read:.0%}")


def scenes(split: str, count: int, size: int) -> tuple[np.ndarray, list[str]]:
    """The first images of a split, and their captions."""
    found = [shapes.scene(i, split) for i in range(count)]
    return shapes.draw(found, size), [one.caption for one in found]


def probe(system, objects: int) -> float:
    """Accuracy on held-out images of classifiers that were fitted to those of the training set: one
    for each colour, which reads the form of the object that has it, of `objects` of different
    colours.
    """
    told = {split: _embedded(system, split, objects) for split in shapes.SPLITS}
    right = []
    for colour in shapes.COLOURS:
        of_split = {}
        for split, (embeds, found) in told.items():
            own = [(i, one.shape) for i, each in enumerate(found) for one in each.things
                   if one.colour == colour]  # fmt: skip
            of_split[split] = embeds[[i for i, _ in own]], [shape for _, shape in own]
        fitted = LogisticRegression(C=100, max_iter=2000).fit(*of_split["train"])
        embeds, forms = of_split["heldout"]
        right += list(fitted.predict(embeds) == np.array(forms))
    return float(np.mean(right))


def _embedded(system, split, objects):
    """CLIP's embeddings of scenes with so many objects of different colours, and the scenes."""
    found = [shapes.scene(i, split) for i in range(_PROBED)]
    found = [one for one in found if len({thing.colour for thing in one.things}) == objects]
    images = shapes.draw(found, system.decoder.task.stages[-1].image_size)
    embeds = [system.clip.embed_images(images[i : i + 200]) for i in range(0, len(images), 200)]
    return np.concatenate(embeds), found


if __name__ == "__main__":
    main()
