"""A decoder of image tokens in plain PyTorch with a KV cache, as a user would write it today: the
peer of Parti's generation and training, eager and under `torch.compile`.

Written from the architecture of the Parti paper (Yu et al. 2022, section 2): causal self-attention,
cross-attention to the text's embeddings, MLP. `kv_heads=1` gives the multi-query attention of
parti-pytorch. The cache has its full length from the start and each position is written in place,
so that one compiled step (on a GPU one CUDA graph) serves all positions.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Queries, keys, values and the output of one attention; keys of `context_dim` wide inputs."""

    def __init__(self, dim, heads, kv_heads, head_dim, context_dim):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * kv_heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def keys_values(self, x_BNC):
        """Two of (B, kv_heads, N, head_dim)."""
        kv = self.to_kv(x_BNC).unflatten(-1, (2, self.kv_heads, self.head_dim))
        return kv.permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x_BNC, k_BHKD, v_BHKD, mask=None, causal=False):
        """The attention's output, (B, N, C); mask: True where a key may be seen."""
        q_BHND = self.to_q(x_BNC).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q_BHND, k_BHKD, v_BHKD, mask, is_causal=causal, enable_gqa=self.kv_heads != self.heads
        )
        return self.to_out(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a norm."""

    def __init__(self, dim, heads, kv_heads, head_dim, mlp_dim):
        super().__init__()
        sizes = (dim, heads, kv_heads, head_dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.own, self.cross = Attention(*sizes), Attention(*sizes)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x_BNC, text_kv):
        """All positions at once."""
        h = self.norms[0](x_BNC)
        x = x_BNC + self.own(h, *self.own.keys_values(h), causal=True)
        x = x + self.cross(self.norms[1](x), *text_kv)
        return x + self.mlp(self.norms[2](x))

    def step(self, x_B1C, past, text_kv, position, seen):
        """One position; `past` is written in place."""
        h = self.norms[0](x_B1C)
        for cache, new in zip(past, self.own.keys_values(h), strict=True):
            cache.index_copy_(2, position, new)
        x = x_B1C + self.own(h, *past, seen)
        x = x + self.cross(self.norms[1](x), *text_kv)
        return x + self.mlp(self.norms[2](x))


class CachedDecoder(nn.Module):
    """Image tokens from text embeddings of width `dim`."""

    def __init__(self, dim, depth, heads, kv_heads, head_dim, mlp_dim, codes, tokens):
        super().__init__()
        self.tokens, self.codes, self._kept = tokens, codes, None
        self.embed, self.position = nn.Embedding(codes + 1, dim), nn.Embedding(tokens, dim)
        self.layers = nn.ModuleList(
            Layer(dim, heads, kv_heads, head_dim, mlp_dim) for _ in range(depth)
        )
        self.norm, self.to_logits = nn.LayerNorm(dim), nn.Linear(dim, codes)

    def forward(self, ids_BN, text_BLC):
        """Logits (B, N, codes) of training: the input is the start token and all but the last."""
        start = torch.full_like(ids_BN[:, :1], self.codes)
        x = self.embed(torch.cat([start, ids_BN[:, :-1]], 1)) + self.position.weight
        for layer in self.layers:
            x = layer(x, layer.cross.keys_values(text_BLC))
        return self.to_logits(self.norm(x))

    def step(self, ids_B, position, past, text_kv):
        """Logits (B, codes) of the token at `position` (a tensor of one integer)."""
        x = self.embed(ids_B[:, None]) + self.position(position)
        seen = (torch.arange(self.tokens, device=x.device) <= position)[None, None, None]
        for layer, own, text in zip(self.layers, past, text_kv, strict=True):
            x = layer.step(x, own, text, position, seen)
        return self.to_logits(self.norm(x[:, 0])).float()

    @torch.inference_mode()
    def generate(self, text_BLC, step=None, guidance=3.0, top_k=0.1):
        """Tokens (B, tokens) for texts and, in the second half of the rows, the null text.

        Args:
          step: a compiled `self.step`; None: eager.
        """
        batch = len(text_BLC) // 2
        past, text_kv = self._caches(text_BLC)
        ids = torch.full((batch,), self.codes, device=text_BLC.device)
        found, keep = [], max(int(top_k * self.codes), 1)
        for at in range(self.tokens):
            position = torch.tensor([at], device=text_BLC.device)
            logits = (step or self.step)(torch.cat([ids, ids]), position, past, text_kv)
            logits = logits[batch:] + guidance * (logits[:batch] - logits[batch:])
            least = logits.topk(keep).values[:, -1:]
            noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 1e-7)))
            ids = (logits.masked_fill(logits < least, -torch.inf) + noise).argmax(-1)
            found.append(ids)
        return torch.stack(found, 1)

    def _caches(self, text_BLC):
        """(empty caches of past positions, keys and values of the text), in memory that is kept: a
        CUDA graph is recorded for its addresses. What a former run left in it is masked.
        """
        text = [layer.cross.keys_values(text_BLC) for layer in self.layers]
        if self._kept is None or self._kept[1][0][0].shape != text[0][0].shape:
            shape = (*text[0][0].shape[:2], self.tokens, text[0][0].shape[-1])
            past = [[text_BLC.new_zeros(shape) for _ in range(2)] for _ in text]
            self._kept = past, [[torch.empty_like(t) for t in pair] for pair in text]
            for cache in (entry for tree in self._kept for pair in tree for entry in pair):
                torch._dynamo.mark_static_address(cache)
        for kept, new in zip(self._kept[1], text, strict=True):
            for entry, value in zip(kept, new, strict=True):
                entry.copy_(value)
        return self._kept
