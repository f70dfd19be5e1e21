"""x-clip 0.14.4 and dalle2-pytorch 1.15.6, driven as their trainers drive them, on the CPU: Adam,
no accelerator.
"""

from __future__ import annotations

import os
import sys

import dalle2_rows
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "parity"))

PACKAGES = ("dalle2-pytorch", "x-clip", "torch")


class Side:
    """One row on one side: `run` does one unit of work and returns when it is done."""

    name = "dalle2-pytorch 1.15.6"

    def __init__(self, row, size, batch):
        import reference
        import torch

        package = reference.load("dalle2_pytorch")
        torch.manual_seed(0)
        self.torch, self.size = torch, size
        images = np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))
        self.images = torch.from_numpy(images).float() / 255
        self.batch = {
            name: torch.from_numpy(array) for name, array in batch.items() if name != "image"
        }
        if row == "train_clip":
            self.net = self.module = package.CLIP(**dalle2_rows.clip(size))
        elif row.endswith("prior"):
            self.net = package.DiffusionPriorNetwork(**dalle2_rows.prior(size))
            self.module = package.DiffusionPrior(
                self.net, image_embed_dim=size.dim, timesteps=size.timesteps, cond_drop_prob=0.2
            )
        else:
            few = {"sample_timesteps": size.ddim} if row == "decoder_ddim" else {}
            self.net = package.Unet(**dalle2_rows.unet(size))
            self.module = package.Decoder(
                self.net, image_size=size.image,
                timesteps=size.timesteps, image_cond_drop_prob=0.2, **few,
            )  # fmt: skip
        self.run = {
            "train_clip": self.train_clip, "train_prior": self.train_prior,
            "sample_prior": self.sample_prior, "train_decoder": self.train_decoder,
        }.get(row, self.sample_decoder)  # fmt: skip
        if row.startswith("train"):
            own = self.module.parameters()
            self.adam = torch.optim.Adam(own, lr=1e-4, betas=(0.9, 0.99))

    def weights(self):
        """The module whose weights the other side takes over."""
        return self.module

    def compilable(self):
        """What `torch.compile` is tried on: modules, and which of their methods."""
        own = getattr(self.module, "unets", [self.net])  # a decoder makes U-Nets of its own
        return [(network, "forward") for network in own]

    def warm_up(self):
        """One unit: nothing is compiled, the first one only fills memory pools."""
        self.run()

    def train_clip(self):
        """The loss of one step."""
        text = self.batch["text"].long()
        return self._step(lambda: self.module(text, self.images, return_loss=True))

    def train_prior(self):
        """The loss of one step."""
        return self._step(lambda: self.module(**self._told(), image_embed=self._images()))

    def train_decoder(self):
        """The loss of one step."""
        return self._step(lambda: self.module(self.images, image_embed=self._images()))

    def sample_prior(self):
        """Image embeddings, guidance 2."""
        with self.torch.no_grad():
            self.module.eval()
            shape = (self.size.batch, self.size.dim)
            return self.module.p_sample_loop(shape, self._told(), cond_scale=2.0)

    def sample_decoder(self):
        """Images, guidance 2."""
        with self.torch.no_grad():
            self.module.eval()
            return self.module.sample(image_embed=self._images(), cond_scale=2.0)

    def _images(self):
        return self.batch["image_embeds"]

    def _told(self):
        return {
            "text_embed": self.batch["caption_embeds"],
            "text_encodings": self.batch["text_embeds"],
        }

    def _step(self, loss_of):
        self.module.train()
        self.adam.zero_grad()
        loss = loss_of()
        loss.backward()
        self.adam.step()
        return float(loss.detach())
