"""What an augmentation pipeline is: a frozen table row of a paper."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from selfsight.errors import ConfigError, suggestion

__all__ = ["XYZ", "View"]

Range = tuple[float, float]

_SPACES = ("rgb", "lab", "raw")
_PROBABILITIES = (
    *("flip", "rotate", "jitter_p", "gray", "blur"),
    *("solarize", "equalize", "cutout", "noise", "sobel"),
)

# Row of XYZ / white point of D65 for linear red, green and blue.
XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


@dataclass(frozen=True, kw_only=True)
class View:
    """One augmentation pipeline; operators act in the order of the fields.

    size: side of the square output in pixels
    crop: range of the cropped area as a fraction of the image's
    ratio: range of the crop's width / height, drawn log-uniformly
    flip: probability of a horizontal flip
    rotate: probability of a turn by 90, 180 or 270 degrees
    jitter: strengths of brightness, contrast, saturation and hue, applied in a random order
    jitter_p: probability of the jitter
    gray: probability of losing all colour
    blur: probability of a Gaussian blur; its kernel is the odd number next to size / 10
    blur_sigma: range of the blur's standard deviation in pixels
    solarize: probability of inverting the values of 128 and above
    equalize: probability of equalising each channel's histogram
    cutout: probability of a grey square of half the side
    noise: probability of Gaussian noise of standard deviation 0.1
    sobel: probability of keeping only the edges (gradient magnitude of the luminance)
    space: "rgb" normalised by the encoder's mean and deviation, "lab" (L, a, b in about
        [-1, 1]), or "raw" (rgb in [0, 1])
    count: how many crops are drawn this way
    """

    size: int = 224
    crop: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotate: float = 0.0
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_p: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarize: float = 0.0
    equalize: float = 0.0
    cutout: float = 0.0
    noise: float = 0.0
    sobel: float = 0.0
    space: Literal["rgb", "lab", "raw"] = "rgb"
    count: int = 1

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"View.{name} is a probability, got {getattr(self, name)}")
        if self.size < 1 or self.count < 1:
            raise ConfigError(f"View needs size ≥ 1 and count ≥ 1, got {self.size}, {self.count}")
        for name in ("crop", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"View.{name} needs 0 < low ≤ high, got {(low, high)}")
        if self.crop[1] > 1:
            raise ConfigError(f"View.crop is a fraction of the image, got {self.crop}")
        if len(self.jitter) != 4 or not min(self.jitter) >= 0 or self.jitter[3] > 0.5:
            raise ConfigError(
                f"View.jitter needs four strengths ≥ 0 and hue ≤ 0.5, got {self.jitter}"
            )
        if self.space not in _SPACES:
            near = suggestion(self.space, _SPACES) or f"; choose from {', '.join(_SPACES)}"
            raise ConfigError(f"View.space knows no {self.space!r}{near}")

    def scaled(self, size: int, *, multiple: int = 1, base: int = 224) -> Self:
        """The same view for a main crop of `size` instead of `base` pixels, as a
        multiple of the encoder's patch."""
        side = max(multiple, round(self.size * size / base / multiple) * multiple)
        return replace(self, size=side)

    @property
    def blur_kernel(self) -> int:
        """Taps of the blur's kernel: odd, about a tenth of the side, at least 3."""
        return max(3, 2 * (self.size // 20) + 1)
