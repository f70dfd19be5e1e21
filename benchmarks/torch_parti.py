"""parti-pytorch 0.2.0, driven as its own documentation drives it, on the CPU.

The image tokenizer is one of lookup-free quantisation, the package's default at this version. The
perceptual term needs VGG16 weights that no benchmark machine has; the same stand-in (the mean of
the image in blocks of 16 x 16 pixels) is on both sides. Each row builds what it needs and no more:
no discriminator where none is trained, and no tokenizer worth the name where Parti is trained on
stored tokens (the package can't be built without one).
"""

from __future__ import annotations

import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "parity"))

PACKAGES = ("parti-pytorch", "vector-quantize-pytorch", "torch")
_ADAM = {"lr": 3e-4, "betas": (0.9, 0.99)}


class Side:
    """One row on one side: `run` does one unit of work and returns when it is done."""

    name = "parti-pytorch 0.2.0"

    def __init__(self, row, size, batch):
        import reference
        import torch

        self._package = reference.load("parti_pytorch")
        torch.manual_seed(0)
        self.torch, self.size = torch, size
        self.embeds, self.mask = (
            torch.from_numpy(batch["text_embeds"]),
            torch.from_numpy(batch["text_mask"]),
        )
        self.ids = torch.from_numpy(batch["tokens"]).long()
        image = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
        self.images = torch.from_numpy(image).float() / 255
        gan = row == "train_gan"
        self.vae = self._tokenizer(size.dim, size.tokenizer_layers, gan)
        if row == "generate":
            self.parti = self._parti(self.vae)
        elif row == "train_parti":
            self.parti = self._parti(self._tokenizer(4, 1, False))
            own = [p for name, p in self.parti.named_parameters() if not name.startswith("vae.")]
            self.adam = torch.optim.Adam(own, **_ADAM)
            self.vae = None
        elif row in ("train_tokenizer", "train_gan"):
            discriminator = set(self.vae.discr.parameters()) if gan else set()
            self.adam = torch.optim.Adam(
                [p for p in self.vae.parameters() if p not in discriminator], **_ADAM
            )
            self.adam_discriminator = (
                torch.optim.Adam(self.vae.discr.parameters(), **_ADAM) if gan else None
            )
        self.run = getattr(self, row)

    def weights(self):
        """The module whose weights the other side takes over."""
        return getattr(self, "parti", None) or self.vae

    def compilable(self):
        """What `torch.compile` is tried on: modules, and which of their methods."""
        if (parti := getattr(self, "parti", None)) is not None:
            return [(parti, "forward")]
        # not the discriminator, whose penalty takes gradients of gradients
        return [(self.vae, "encode"), (self.vae, "decode")]

    def warm_up(self):
        """What can be paid once: for generation a single token, since nothing is compiled."""
        if self.run.__name__ != "generate":
            self.run()
            return
        with self.torch.no_grad():
            none = self.torch.empty((self.size.batch, 0), dtype=self.torch.long)
            self.parti.forward_with_cond_scale(
                text_token_embeds=self.embeds, text_mask=self.mask, image_token_ids=none
            )

    def generate(self):
        """Images, guidance 3."""
        with self.torch.no_grad():
            self.parti.eval()
            return self.parti.generate(texts=[""] * self.size.batch, cond_scale=3.0)

    def train_parti(self):
        """The loss of one step of Parti from stored tokens and stored text embeddings."""
        self.parti.train()
        self.adam.zero_grad()
        loss = self.parti(
            text_token_embeds=self.embeds,
            text_mask=self.mask,
            image_token_ids=self.ids,
            return_loss=True,
        )
        loss.backward()
        self.adam.step()
        return float(loss.detach())

    def train_tokenizer(self):
        """The loss of one step without a discriminator: absolute error and the quantiser's loss.

        The package itself leaves the quantiser's loss out of this case, though it has computed it
        by then; with it the two sides train the same thing.
        """
        self.vae.train()
        self.adam.zero_grad()
        fmap, _, quantizer = self.vae.encode(self.images)
        loss = self.torch.nn.functional.l1_loss(self.vae.decode(fmap), self.images) + quantizer
        loss.backward()
        self.adam.step()
        return float(loss.detach())

    def train_gan(self):
        """The generator's loss of one step: generator with adaptive weight, then discriminator with
        penalty.
        """
        self.vae.train()
        self.adam.zero_grad()
        loss = self.vae(self.images, return_loss=True)
        loss.backward()
        self.adam.step()
        self.adam_discriminator.zero_grad()
        # the package marks the images it is given as in need of a gradient
        images = self.images.clone()
        self.vae(images, return_discr_loss=True, apply_grad_penalty=True).backward()
        self.adam_discriminator.step()
        return float(loss.detach())

    def encode(self):
        """Tokens of the images, (B, N)."""
        with self.torch.no_grad():
            self.vae.eval()
            return self.vae.encode(self.images)[1].flatten(1).numpy()

    def _tokenizer(self, dim, layers, gan):
        size = self.size
        return self._package.VitVQGanVAE(
            dim=dim,
            image_size=size.image,
            layers=layers,
            encdec_patch_size=size.patch,
            codebook_size=size.codebook,
            use_vgg_and_gan=gan,
            vgg=_block_means(self.torch) if gan else None,
        )

    def _parti(self, vae):
        size = self.size
        parti = self._package.Parti(
            vae=vae,
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            dim_head=size.dim_head,
            t5_name=size.t5,
        )
        parti.encode_texts = lambda texts, output_device=None: (self.embeds, self.mask)
        return parti


def _block_means(torch):
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
