"""The peer of Parti's generation that a user would write: a PyTorch loop that keeps keys and values
(`torch_cached.py`), in the sizes of the row, and the package's tokenizer behind it.
"""

from __future__ import annotations

from torch_parti import Side as PackageSide

PACKAGES = ("torch", "parti-pytorch")


class Side(PackageSide):
    """The row `generate`: `run` makes images once and returns when it is done."""

    name = "a PyTorch loop with a KV cache"

    def __init__(self, row, size, batch):
        super().__init__("train_tokenizer", size, batch)
        from torch_cached import CachedDecoder

        torch = self.torch
        tokens = (size.image // size.patch) ** 2
        self.decoder = CachedDecoder(
            size.dim, size.depth, size.heads, 1, size.dim_head, 4 * size.dim, size.codebook, tokens
        ).eval()
        self.text = torch.nn.Linear(size.text_dim, size.dim)
        self.run = self.generate

    def weights(self):
        """None: the networks differ in their norms, so the other side draws its own."""
        return None

    def compilable(self):
        """What `torch.compile` is tried on: the step of one token, and the tokenizer."""
        return [(self.decoder, "step"), (self.vae, "decode")]

    def warm_up(self):
        """One unit."""
        self.run()

    def generate(self):
        """Images, guidance 3, of the 10% most likely codes."""
        torch = self.torch
        with torch.no_grad():
            self.vae.eval()
            text = self.text(self.embeds)
            ids = self.decoder.generate(torch.cat([text, torch.zeros_like(text)]))
            side = self.size.image // self.size.patch
            return self.vae.decode(self.vae.get_fmap_from_codebook(ids.unflatten(1, (side, side))))
