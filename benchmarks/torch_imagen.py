"""imagen-pytorch 2.1.0, driven as its trainer drives it, on the CPU: Adam with betas (0.9, 0.99),
no accelerator.
"""

from __future__ import annotations

import os
import sys

import imagen_rows
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests", "parity"))

PACKAGES = ("imagen-pytorch", "torch")


class Side:
    """One row on one side: `run` does one unit of work and returns when it is done."""

    name = "imagen-pytorch 2.1.0"

    def __init__(self, row, size, batch):
        import reference
        import torch

        package = reference.load("imagen_pytorch")
        torch.manual_seed(0)
        self.torch, self.size, self.row = torch, size, row
        unets = [package.Unet(**options) for options in imagen_rows.unets(size)]
        common = dict(image_sizes=size.images, text_embed_dim=size.text_dim)
        if row == "sample_edm":
            self.imagen = package.ElucidatedImagen(unets, num_sample_steps=size.edm_steps, **common)
        else:
            self.imagen = package.Imagen(unets, timesteps=size.ddpm_steps, **common)
        self.images = (
            torch.from_numpy(np.ascontiguousarray(batch["image"].transpose(0, 3, 1, 2))).float()
            / 255
        )
        embeds, mask = torch.from_numpy(batch["text_embeds"]), torch.from_numpy(batch["text_mask"])
        self.text = {"text_embeds": embeds, "text_masks": mask}
        self.number = {"train_base": 1, "train_larger": 2}.get(row)
        if self.number:
            weights = self.imagen.unets[self.number - 1].parameters()
            self.adam = torch.optim.Adam(weights, lr=1e-4, betas=(0.9, 0.99))
        self.run = self.train if self.number else self.sample

    def weights(self):
        """The module whose weights the other side takes over."""
        return self.imagen

    def compilable(self):
        """What `torch.compile` is tried on: modules, and which of their methods."""
        return [(unet, "forward") for unet in self.imagen.unets]

    def warm_up(self):
        """One unit: nothing is compiled, the first one only fills memory pools."""
        self.run()

    def train(self):
        """The loss of one step of a stage."""
        self.imagen.train()
        self.adam.zero_grad()
        loss = self.imagen(self.images, **self.text, unet_number=self.number)
        loss.backward()
        self.adam.step()
        return float(loss.detach())

    def sample(self):
        """Images, guidance 3."""
        with self.torch.no_grad():
            self.imagen.eval()
            return self.imagen.sample(**self.text, cond_scale=3.0, use_tqdm=False)
