"""What the methods ask of an encoder."""

import abc
import contextlib
from collections.abc import Iterator, Sequence
from typing import NoReturn, Self

import torch
from torch import Tensor, nn

from selfsight.errors import ConfigError

__all__ = ["Encoder"]


class Encoder(nn.Module, abc.ABC):
    """Images (N, 3, H, W) go in, embeddings h (N, dim) come out. Subclasses are final,
    and refuse what they do not define.

    name: the architecture
    dim: width of `forward`'s output
    token_dim: width of one patch token
    size: native side of the input in pixels
    multiple: input sides are multiples of this: the patch of a ViT, 1 for a CNN
    maskable: whether `tokens` accepts `keep` and `mask`
    levels: how many feature maps `maps` can give, numbered from the input; 0 if it gives none
    mean, std: what the input is normalised by
    crop_pct: fraction of the short side that the evaluation crop keeps
    pretrained: whether it started from trained weights
    """

    name: str
    dim: int
    token_dim: int
    size: int
    multiple: int
    maskable: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    pretrained = False
    levels = 0

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, dim): the pooled embedding."""

    def tokens(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(N, dim) pooled and (N, T, token_dim) patches, row by row over `grid(x)`.

        keep: (N, K) int64 patch numbers; the others are dropped after positions are added,
            and the patches come back in the order of `keep`
        mask: (N, T) bool; the embeddings of true patches are replaced by `mask_token`,
            (1, 1, token_dim), before positions are added
        """
        self._cannot("patch tokens")

    def maps(self, x: Tensor, levels: int | Sequence[int]) -> list[Tensor]:
        """Feature maps (N, C, rows, columns): the last `levels`, or those numbered so."""
        self._cannot("feature maps")

    def attention(self, x: Tensor) -> Tensor:
        """(N, heads, T): what the last block's class token attends to, softmax included."""
        self._cannot("attention")

    def fresh(self, name: str | None = None, seed: int | None = None) -> "Encoder":
        """Another encoder with the same settings and new weights.

        seed: None draws the weights from torch's generator, a number leaves it untouched.
        """
        self._cannot("untrained twin")

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the token map of `x`."""
        self._cannot("patch tokens")

    @property
    def patch_projection(self) -> nn.Conv2d:
        """The layer by which a maskable encoder makes tokens of patches."""
        self._cannot("projection of patches")

    def fix_positions(self, positions: Tensor) -> None:
        """Give a maskable encoder these positions (T, token_dim) for good, in place of learned
        ones."""
        self._cannot("positions of patches")

    @contextlib.contextmanager
    def resting(self, device: str | torch.device) -> Iterator[Self]:
        """On the device in evaluation mode, so that no statistic moves; afterwards as it was."""
        # What is not torch's has no parameters.
        home = next((p.device for p in self.parameters()), torch.device("cpu"))
        modes = {module: module.training for module in self.modules()}
        try:
            yield self.to(device).eval()
        finally:
            self.to(home)
            for module, mode in modes.items():
                module.training = mode

    def last_tokens(self, x: Tensor, blocks: int) -> list[tuple[Tensor, Tensor]]:
        """The class token (N, token_dim) and the patches (N, T, token_dim) behind each of the last
        blocks, normalised as the output is; none where there is no class token."""
        return []

    def copied(self, *, drop_path: float = 0.0, average: bool = False) -> "Encoder":
        """Another encoder with these weights, to be trained further.

        drop_path: probability, in training, of leaving a residual branch of the last block out;
            it grows with the depth
        average: pool by the mean over the patches, whose norm is a new one
        """
        self._cannot("weights to copy")

    def layers(self) -> list[list[str]]:
        """Names of the parameters from the input to the output: the stem's, those of each block
        of a transformer or stage of a CNN, and what follows them, which may be none."""
        raise ConfigError(
            f"{self.name} does not tell its layers apart; train them all alike, by a layer_decay "
            "of 1 and a from_layer of 0"
        )

    def learns_in_bf16(self, side: int, device: str) -> bool:
        """Whether gradients of images of `side` pixels are right in bf16 there.

        On a CPU, oneDNN's weight gradient holds uninitialised memory where a convolution's
        stride exceeds its map (torch 2.15): the last stage of a ResNet at 16 px.
        """
        return self.maskable or side >= 32 or not device.startswith("cpu")

    def undecayed(self) -> frozenset[str]:
        """Names of parameters, beside biases and norms, that weight decay spares: positions,
        class tokens."""
        return frozenset()

    def _cannot(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self.name} gives embeddings, but no {what}; take a run, a model folder or a timm "
            "architecture"
        )
