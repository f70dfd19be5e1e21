"""parti-pytorch 0.2.0 at the benchmark's size, driven as its own documentation drives it, on the CPU.

The image tokenizer is one of lookup-free quantisation (the package's default at this version) with a codebook of 8192.
The perceptual term needs VGG16 weights that no benchmark machine has; the same stand-in (the mean of the picture in
blocks of 16 x 16 pixels) is on both sides.
"""

from __future__ import annotations

import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "parity"))


class Side:
    """One side of the comparison: each method does one unit of work and returns when it is done."""

    name = "parti-pytorch 0.2.0"

    def __init__(self, inputs, size):
        import reference
        import torch

        package = reference.load("parti_pytorch")
        torch.manual_seed(0)
        self.torch, self.size = torch, size
        self.embeds = torch.from_numpy(inputs["text_embeds"])
        self.mask = torch.from_numpy(inputs["text_mask"])
        self.ids = torch.from_numpy(inputs["tokens"]).long()
        self.images = torch.from_numpy(np.ascontiguousarray(inputs["images"].transpose(0, 3, 1, 2)))
        self.vae = package.VitVQGanVAE(
            dim=size.dim, image_size=size.image, layers=size.tokenizer_layers, encdec_patch_size=size.patch,
            codebook_size=size.codebook, vgg=_BlockMeans(torch),
        )  # fmt: skip
        self.parti = package.Parti(
            vae=self.vae, dim=size.dim, depth=size.depth, heads=size.heads, dim_head=size.dim_head,
            t5_name="t5-large",
        )  # fmt: skip
        self.parti.encode_texts = lambda texts, output_device=None: (self.embeds, self.mask)
        generator = set(self.vae.parameters()) - set(self.vae.discr.parameters())
        self.adam_generator = torch.optim.Adam(generator, lr=3e-4, betas=(0.9, 0.99))
        self.adam_discriminator = torch.optim.Adam(self.vae.discr.parameters(), lr=3e-4, betas=(0.9, 0.99))
        own = [p for name, p in self.parti.named_parameters() if not name.startswith("vae.")]
        self.adam_parti = torch.optim.Adam(own, lr=3e-4, betas=(0.9, 0.99))

    def generate(self):
        """Four pictures, guidance 3."""
        with self.torch.no_grad():
            self.parti.eval()
            return self.parti.generate(texts=[""] * self.size.batch, cond_scale=3.0)

    def train_parti(self):
        """One step of Parti from stored tokens and stored text embeddings."""
        self.parti.train()
        self.adam_parti.zero_grad()
        loss = self.parti(
            text_token_embeds=self.embeds, text_mask=self.mask, image_token_ids=self.ids, return_loss=True
        )
        loss.backward()
        self.adam_parti.step()
        return float(loss.detach())

    def train_tokenizer(self):
        """One step of the tokenizer: generator with adaptive weight, then discriminator with gradient penalty."""
        self.vae.train()
        self.adam_generator.zero_grad()
        loss = self.vae(self.images, return_loss=True)
        loss.backward()
        self.adam_generator.step()
        self.adam_discriminator.zero_grad()
        self.vae(self.images, return_discr_loss=True, apply_grad_penalty=True).backward()
        self.adam_discriminator.step()
        return float(loss.detach())

    def encode(self):
        """Tokens of four pictures."""
        with self.torch.no_grad():
            self.vae.eval()
            return self.vae.encode(self.images)[1]


def _BlockMeans(torch):
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
