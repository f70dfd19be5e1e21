"""muse-maskgit-pytorch 0.3.5, driven as its own documentation drives it, on the CPU.

The image tokenizer is one of lookup-free quantisation, the package's default at this version; the
perceptual term is the stand-in of torch_parti.py. Text embeddings are given, so that no T5 runs on
either side.
"""

from __future__ import annotations

import os
import sys

import numpy as np
from torch_parti import _ADAM, _block_means

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "parity"))

PACKAGES = ("muse-maskgit-pytorch", "vector-quantize-pytorch", "torch")


class Side:
    """One row on one side: `run` does one unit of work and returns when it is done."""

    name = "muse-maskgit-pytorch 0.3.5"

    def __init__(self, row, size, batch):
        import reference
        import torch

        self._package = reference.load("muse_maskgit_pytorch")
        torch.manual_seed(0)
        self.torch, self.size = torch, size
        self.embeds = torch.from_numpy(batch["text_embeds"])
        self.ids, self.cond_ids = (
            torch.from_numpy(batch[name]).long() for name in ("tokens", "cond_ids")
        )
        image = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
        self.images = torch.from_numpy(image).float() / 255
        gan = row == "train_gan"
        self.vae = self._tokenizer(gan)
        self.maskgit = None
        if not row.startswith("train_"):
            self.maskgit = self._maskgit()
        elif row == "train_maskgit":
            self.maskgit = self._maskgit()
            own = [p for name, p in self.maskgit.named_parameters() if "vae." not in name]
            self.adam = torch.optim.Adam(own, **_ADAM)
        else:
            discriminator = set(self.vae.discr.parameters()) if gan else set()
            own = [p for p in self.vae.parameters() if p not in discriminator]
            self.adam = torch.optim.Adam(own, **_ADAM)
            self.adam_discriminator = (
                torch.optim.Adam(self.vae.discr.parameters(), **_ADAM) if gan else None
            )
        self.run = getattr(self, row)

    def weights(self):
        """The modules whose weights the other side takes over."""
        return self.vae if self.maskgit is None else (self.maskgit.transformer, self.vae)

    def compilable(self):
        """What `torch.compile` is tried on: modules, and which of their methods."""
        if self.maskgit is None:
            # not the discriminator, whose penalty takes gradients of gradients
            return [(self.vae, "encode"), (self.vae, "decode")]
        return [(self.maskgit.transformer, "forward")]

    def warm_up(self):
        """One pass; nothing is compiled."""
        if self.run.__name__ not in ("generate", "superres"):
            self.run()
            return
        with self.torch.no_grad():
            self.maskgit.transformer(self.ids, text_embeds=self.embeds)

    def generate(self):
        """Images in `size.steps` steps, guidance 3."""
        return self._generate({})

    def superres(self):
        """The same from the tokens of small images."""
        cond = self.cond_ids.reshape(len(self.cond_ids), 1, -1)[:, 0]
        # the package encodes small images; here their tokens are given, as on the other side
        side = int(cond.shape[1] ** 0.5)
        self.maskgit.cond_vae.encode = lambda images: (
            None, cond.reshape(len(cond), side, side), None,
        )  # fmt: skip
        images = self.torch.zeros(len(cond), 3, self.size.cond, self.size.cond)
        return self._generate({"cond_images": images})

    def _generate(self, more):
        with self.torch.no_grad():
            self.maskgit.eval()
            return self.maskgit.generate(
                texts=[""] * self.size.batch, cond_scale=3.0, timesteps=self.size.steps, **more
            )

    def train_maskgit(self):
        """The loss of one step of MaskGit from stored tokens and stored text embeddings."""
        self.maskgit.train()
        self.adam.zero_grad()
        loss = self.maskgit(self.ids, text_embeds=self.embeds)
        loss.backward()
        self.adam.step()
        return float(loss.detach())

    def train_tokenizer(self):
        """The loss of one step without a discriminator: absolute error and the quantiser's loss,
        which the package computes in this case and leaves out.
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
        images = self.images.clone()
        self.vae(images, return_discr_loss=True, add_gradient_penalty=True).backward()
        self.adam_discriminator.step()
        return float(loss.detach())

    def _tokenizer(self, gan):
        size = self.size
        return self._package.VQGanVAE(
            dim=size.tokenizer_dim,
            layers=size.layers,
            codebook_size=size.codebook,
            use_vgg_and_gan=gan,
            vgg=_block_means(self.torch) if gan else None,
        )

    def _maskgit(self):
        size = self.size
        transformer = self._package.MaskGitTransformer(
            num_tokens=size.codebook,
            seq_len=size.tokens,
            dim=size.dim,
            depth=size.depth,
            dim_head=size.dim_head,
            heads=size.heads,
            t5_name=size.t5,
        )
        transformer.encode_text = lambda texts: self.embeds
        more = {"cond_image_size": size.cond} if size.cond else {}
        return self._package.MaskGit(
            vae=self.vae, transformer=transformer, image_size=size.image, cond_drop_prob=0.25,
            **more,
        )  # fmt: skip
