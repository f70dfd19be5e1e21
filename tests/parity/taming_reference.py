"""The VQGAN of taming-transformers, open-muse (MaskGIT's) and LlamaGen in PyTorch, written from
their architecture under the names that their checkpoints have; the packages themselves are not
importable, or not on PyPI.
"""

import torch
from torch import nn
from torch.nn import functional as F


def _conv(inner, outer, side=3, bias=True):
    return nn.Conv2d(inner, outer, side, padding=side // 2, bias=bias)


class _Res(nn.Module):
    def __init__(self, inner, outer, groups, maskgit):
        super().__init__()
        self.maskgit, bias = maskgit, not maskgit
        self.norm1 = nn.GroupNorm(groups, inner, eps=1e-6)
        self.conv1 = _conv(inner, outer, bias=bias)
        self.norm2 = nn.GroupNorm(groups, outer, eps=1e-6)
        self.conv2 = _conv(outer, outer, bias=bias)
        if inner != outer:
            self.nin_shortcut = _conv(outer if maskgit else inner, outer, 1, bias)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(y if self.maskgit else x)
        return x + y


class _Attention(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (_conv(width, width, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))
        weights = (torch.einsum("bcq,bck->bqk", q, k) * q.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape))


class _Level(nn.Module):
    """Blocks, attentions, and what changes the size; `names` are those of the three."""

    def __init__(self, names, inner, outer, blocks, attention, groups, maskgit):
        super().__init__()
        block, attn, self.resize = names
        made = [_Res(inner if j == 0 else outer, outer, groups, maskgit) for j in range(blocks)]
        setattr(self, block, nn.ModuleList(made))
        attentions = [_Attention(outer, groups) for _ in range(blocks if attention else 0)]
        setattr(self, attn, nn.ModuleList(attentions))
        self.names = (block, attn)

    def forward(self, x):
        blocks, attentions = (getattr(self, name) for name in self.names)
        for j, block in enumerate(blocks):
            x = block(x)
            if len(attentions):
                x = attentions[j](x)
        return x


class _Resized(nn.Module):
    def __init__(self, width, stride):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=0 if stride == 2 else 1)


class _Half(nn.Module):
    def __init__(self, kind, first, last, widths, blocks, groups, down):
        super().__init__()
        maskgit, self.kind, self.downwards = kind == "open-muse", kind, down
        block = "res" if kind == "llamagen" else "block"
        self.conv_in = _conv(*first, bias=not (maskgit and down))
        levels, count = [], len(widths)
        for i, width in enumerate(widths):
            came = widths[max(i - 1, 0) if down else min(i + 1, count - 1)]
            came = first[1] if down and i == 0 else came
            attention = i == count - 1 and not maskgit
            level = _Level((block, "attn", None), came, width, blocks, attention, groups, maskgit)
            if down and i < count - 1 and not maskgit:
                level.downsample = _Resized(width, 2)
            if not down and i and maskgit:
                level.upsample_conv = _conv(width, width)
            elif not down and i:
                level.upsample = _Resized(width, 1)
            levels.append(level)
        turned = kind == "llamagen" and not down  # in the order in which they run
        self.levels_name = "conv_blocks" if kind == "llamagen" else "down" if down else "up"
        setattr(self, self.levels_name, nn.ModuleList(levels[::-1] if turned else levels))
        wide = widths[-1]
        middle = [_Res(wide, wide, groups, maskgit), _Res(wide, wide, groups, maskgit)]
        if not maskgit:
            middle.insert(1, _Attention(wide, groups))
        named = zip(("block_1", "attn_1", "block_2"), middle, strict=False)
        self.mid = nn.ModuleDict(named) if kind == "taming" else nn.ModuleList(middle)
        self.norm_out = nn.GroupNorm(groups, widths[-1] if down else widths[0], eps=1e-6)
        self.conv_out = _conv(*last, 1 if maskgit and down else 3)

    def forward(self, x):
        x = self.conv_in(x)
        middle = list(self.mid.values() if self.kind == "taming" else self.mid)
        levels = list(getattr(self, self.levels_name))
        if self.downwards:
            for level in levels:
                x = level(x)
                if hasattr(level, "downsample"):
                    x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))
                elif level is not levels[-1]:
                    x = F.avg_pool2d(x, 2, 2)
        for block in middle:
            x = block(x)
        if not self.downwards:
            for level in levels if self.kind == "llamagen" else levels[::-1]:
                x = level(x)
                if hasattr(level, "upsample") or hasattr(level, "upsample_conv"):
                    convolve = getattr(level, "upsample_conv", None) or level.upsample.conv
                    x = convolve(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class Nearest(nn.Module):
    """The nearest code, with beta at the codebook's term, as in taming-transformers and open-muse;
    `unit`: of vectors of length one, and beta at the commitment, as in LlamaGen.
    """

    def __init__(self, size, width, beta=0.25, unit=False):
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.embedding.weight.data.uniform_(-1.0 / size, 1.0 / size)
        self.beta, self.legacy, self.unit = beta, not unit, unit
        if unit:
            self.register_buffer("codebook_used", torch.zeros(65536))

    def forward(self, z):
        z, table = z.permute(0, 2, 3, 1), self.embedding.weight
        if self.unit:
            z, table = F.normalize(z, dim=-1), F.normalize(table, dim=-1)
        ids = torch.cdist(z.reshape(-1, z.shape[-1]), table).argmin(1).reshape(z.shape[:3])
        code = table[ids]
        commitment, codebook = F.mse_loss(z, code.detach()), F.mse_loss(code, z.detach())
        first, second = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        code = z + (code - z).detach()
        return code.permute(0, 3, 1, 2), ids, first * commitment + second * codebook


class Gumbel(nn.Module):
    """The code of the highest logit, without noise."""

    def __init__(self, size, width):
        super().__init__()
        self.proj, self.embed = nn.Conv2d(width, size, 1), nn.Embedding(size, width)

    def forward(self, z):
        logits = self.proj(z)
        soft = logits.softmax(1)
        ids = soft.argmax(1)
        hard = F.one_hot(ids, soft.shape[1]).permute(0, 3, 1, 2) - soft.detach() + soft
        apart = (soft * torch.log(soft * soft.shape[1] + 1e-10)).sum(1).mean()
        code = torch.einsum("bkhw,kc->bchw", hard, self.embed.weight)
        return code, ids, 5e-4 * apart


class Reference(nn.Module):
    """The network; kind: "taming", "open-muse" or "llamagen"; gumbel: the f8 network of taming."""

    def __init__(self, kind, dim=8, mults=(1, 2), z=6, code=6, size=16, groups=4, gumbel=False):
        super().__init__()
        widths, maskgit = [dim * mult for mult in mults], kind == "open-muse"
        z = code if maskgit else z
        blocks = 2 if maskgit else 1
        common = (widths, blocks, groups, True), (widths, 2, groups, False)
        self.encoder = _Half(kind, (3, dim), (widths[-1], z), *common[0])
        self.decoder = _Half(kind, (z, widths[-1]), (widths[0], 3), *common[1])
        self.quantize = (
            Gumbel(size, code) if gumbel else Nearest(size, code, unit=kind == "llamagen")
        )
        if not maskgit:
            self.quant_conv, self.post_quant_conv = _conv(z, code, 1), _conv(code, z, 1)

    def forward(self, x):
        """(reconstruction, ids, loss of the codebook)."""
        z = self.encoder(x)
        z = self.quant_conv(z) if hasattr(self, "quant_conv") else z
        code, ids, loss = self.quantize(z)
        code = self.post_quant_conv(code) if hasattr(self, "post_quant_conv") else code
        return self.decoder(code), ids, loss
