"""The small networks behind an encoder."""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Decoder",
    "Directions",
    "Head",
    "Prototypes",
    "cosines",
    "dino_head",
    "mlp",
    "row_context",
    "shape",
    "sincos_positions",
]

Head = Literal["none", "linear", "nonlinear"]
LastNorm = Literal["none", "affine", "scale", "plain"]


def mlp(
    *widths: int,
    bias: bool = True,
    norm: bool = True,
    affine: bool = True,
    last_bias: bool = True,
    last_norm: LastNorm = "none",
    act: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers of the given widths with (BatchNorm and) ReLU between them.

    bias, norm: of the hidden layers; affine: their BatchNorm has scale and shift; last_norm:
    BatchNorm on the output, "affine" with scale and shift, "scale" without shift, "plain" with
    neither. One width: the identity.
    """
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(n, m, bias=last_bias if last else bias))
        if not last:
            layers += [nn.BatchNorm1d(m, affine=affine)] * norm + [act()]
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm != "plain"))
    if last_norm == "scale":
        layers[-1].bias.requires_grad_(False)
    return nn.Sequential(*layers)


def shape(head: Head, width: int, hidden: int | None, layers: int, dim: int) -> list[int]:
    """The widths of a projector, for `mlp`: `layers` linear layers where it is nonlinear.

    hidden: width of its inner layers; None: the encoder's, `width`
    """
    inner = [width if hidden is None else hidden] * (layers - 1)
    return {"none": [width], "linear": [width, dim], "nonlinear": [width, *inner, dim]}[head]


def dino_head(width: int, hidden: int, bottleneck: int) -> nn.Sequential:
    """DINO's projector: GELU, no BatchNorm, and weights drawn as a ViT's."""
    head = mlp(width, hidden, hidden, bottleneck, norm=False, act=nn.GELU)
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head


class _RowBlock(nn.Module):
    """x + f(x), f of a row and of the one above it, three columns wide."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
            nn.ZeroPad2d((0, 0, 1, 0)),
            nn.Conv2d(hidden, hidden, (2, 1)),
            nn.ReLU(),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


def row_context(width: int, hidden: int, layers: int) -> nn.Sequential:
    """CPC's context network on maps (N, width, rows, columns): what comes out at a row knows
    nothing of the rows below it."""
    return nn.Sequential(*(_RowBlock(width, hidden) for _ in range(layers)), nn.ReLU())


def cosines(z: Tensor, weight: Tensor) -> Tensor:
    """(N, K) cosines of z: (N, D) with the unit rows of weight: (K, D), in at least float32
    whatever autocast says: divided by a small temperature, rounding would show."""
    with torch.autocast(z.device.type, enabled=False):
        return F.normalize(z.to(weight.dtype), dim=1) @ weight.T


class Prototypes(nn.Module):
    """Cosine scores of z: (N, D) against K unit vectors → (N, K).

    The gradient is that of free vectors; `normalize` puts them back on the sphere after
    each step, as the official SwAV code does before each.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        return cosines(z, self.weight)

    @torch.no_grad()
    def normalize(self) -> None:
        self.weight.copy_(F.normalize(self.weight, dim=1))


class Directions(nn.Module):
    """Cosine scores of z: (N, D) against K free vectors → (N, K): DINO's last layer.

    The gradient goes through the vectors' normalisation, as weight normalisation with its
    scale fixed at 1 has it.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, count, bias=False).weight

    def forward(self, z: Tensor) -> Tensor:
        return cosines(z, F.normalize(self.weight, dim=1))


def sincos_positions(dim: int, rows: int, columns: int) -> Tensor:
    """(rows · columns, dim) fixed positions: a quarter each of sine and cosine of y and x."""
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)[:, None] * omega
    x = torch.arange(columns, dtype=torch.float64).repeat(rows)[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1).float()


class Decoder(nn.Module):
    """MAE's decoder: a narrow transformer from visible tokens back to all patches."""

    def __init__(self, token_dim: int, width: int, depth: int, heads: int, out: int) -> None:
        super().__init__()
        self.embed = nn.Linear(token_dim, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            ),
            nn.LayerNorm(width),
        )
        self.predict = nn.Linear(width, out)

    def forward(
        self, pooled: Tensor, tokens: Tensor, keep: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """pooled: (N, token_dim), read beside the patches; tokens: (N, K, token_dim) of the
        patches keep: (N, K) → (N, T, out)."""
        n, (rows, columns) = len(tokens), grid
        x = self.embed(tokens)
        width = x.shape[2]
        full = self.mask_token.to(x.dtype).expand(n, rows * columns, -1)
        full = full.scatter(1, keep[:, :, None].expand(-1, -1, width), x)
        full = full + sincos_positions(width, rows, columns).to(full)
        full = torch.cat([self.embed(pooled)[:, None], full], 1)
        return self.predict(self.blocks(full)[:, 1:])  # type: ignore[no-any-return]
