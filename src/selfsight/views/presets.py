"""The augmentations that papers share."""

from dataclasses import replace
from typing import Any

from selfsight.views.spec import View

__all__ = ["byol_views", "crops", "simclr_view"]


def simclr_view(strength: float = 1.0, **changes: Any) -> View:
    """SimCLR appendix A; `strength` scales the colour jitter."""
    s = strength
    view = View(jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s))
    return replace(view, **changes)


def byol_views() -> list[View]:
    """BYOL table 6: the first view is always blurred, the second may be solarized."""
    view = View(jitter=(0.4, 0.4, 0.2, 0.1))
    return [replace(view, blur=1.0), replace(view, blur=0.1, solarize=0.2)]


def crops(view: View, small: int) -> list[View]:
    """Two of the view; with `small` crops beside them, SwAV's multi-crop (section 3.3)."""
    if not small:
        return [replace(view, count=2)]
    return [
        replace(view, crop=(0.14, 1.0), count=2),
        replace(view, crop=(0.05, 0.14), size=96, count=small),
    ]
