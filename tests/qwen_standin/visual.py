"""A stand-in's image encoder, written from the contract: paths in, ``n_queries`` vectors of the decoder's width out.

Every call opens the files again; nothing is remembered.
"""

from functools import partial

import requests
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

LayerNorm = partial(nn.LayerNorm, eps=1e-6)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def sincos(width, side):
    """The fixed position table of a square grid: [side * side, width], columns first, then rows."""
    rates = 10000.0 ** -(torch.arange(width // 4) / (width / 4))
    angles = torch.arange(side, dtype=torch.float32).outer(rates)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.cat([line.repeat(side, 1), line.repeat_interleave(side, dim=0)], dim=1)


def resized(table, length):
    """A square position table of another size, bicubic, for as many patches as the image has."""
    old, new = int(len(table) ** 0.5), int(length**0.5)
    if old == new:
        return table
    grid = table.float().unflatten(0, (old, old)).permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid[0].flatten(1).T.to(table.dtype)


class Resampler(nn.Module):
    """Learnt queries that read the patches once; any number of patches becomes ``side * side`` vectors."""

    def __init__(self, side, width, heads, patch_width):
        super().__init__()
        self.pos_embed = nn.Parameter(sincos(width, side), requires_grad=False)
        self.query = nn.Parameter(torch.randn(side * side, width) * 0.02)
        same = patch_width == width
        self.kv_proj = nn.Identity() if same else nn.Linear(patch_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_q, self.ln_kv = LayerNorm(width), LayerNorm(width)

    def forward(self, x):
        places = resized(self.pos_embed, x.shape[1])[:, None]
        x = self.ln_kv(self.kv_proj(x)).transpose(0, 1)
        query = (self.ln_q(self.query) + self.pos_embed)[:, None].expand(-1, x.shape[1], -1)
        return self.attn(query, x + places, x)[0].transpose(0, 1)


class VisualAttention(nn.Module):
    """Self-attention whose ``in_proj`` rows go head by head: head 0's q, k and v, then head 1's, and so on."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.in_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        weights = (query / query.shape[-1] ** 0.5 @ key.transpose(-1, -2)).softmax(dim=-1)
        return self.out_proj((weights @ value).transpose(1, 2).flatten(2))


class VisualAttentionBlock(nn.Module):
    """One pre-norm block of the patch encoder."""

    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(width), LayerNorm(width)
        self.attn = VisualAttention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, int(width * mlp_ratio)))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(int(width * mlp_ratio), width))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TransformerBlock(nn.Module):
    """All blocks of the patch encoder, under the name the checkpoint gives them."""

    def __init__(self, width, layers, heads, mlp_ratio):
        super().__init__()
        self.resblocks = nn.ModuleList(VisualAttentionBlock(width, heads, mlp_ratio) for _ in range(layers))

    def forward(self, x):
        for block in self.resblocks:
            x = block(x)
        return x


class VisionTransformer(nn.Module):
    """Patches, blocks, resampler, projection; other keys of ``config.visual`` are accepted and not used."""

    def __init__(self, image_size, patch_size, width, layers, heads, mlp_ratio, n_queries=256, output_dim=512, **_):
        super().__init__()
        self.image_transform = transforms.Compose([
            transforms.Resize((image_size, image_size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(256, width) * width**-0.5)
        self.ln_pre = LayerNorm(width)
        self.transformer = TransformerBlock(width, layers, heads, mlp_ratio)
        # the original has no lower bound here, and so no width under 128
        self.attn_pool = Resampler(int(n_queries**0.5), output_dim, max(1, output_dim // 128), width)
        self.ln_post = LayerNorm(output_dim)
        self.proj = nn.Parameter(torch.randn(output_dim, output_dim) * output_dim**-0.5)

    def forward(self, x):
        x = self.conv1(x.to(self.conv1.weight)).flatten(2).transpose(1, 2)
        x = self.transformer(self.ln_pre(x + resized(self.positional_embedding, x.shape[1])))
        return self.ln_post(self.attn_pool(x)) @ self.proj

    def encode(self, image_paths):
        pictures = []
        for path in image_paths:
            remote = path.startswith(("http://", "https://"))
            with Image.open(requests.get(path, stream=True).raw if remote else path) as picture:
                pictures.append(self.image_transform(picture.convert("RGB")))
        return self(torch.stack(pictures))
