"""The augmentations that papers share."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from selfsight.errors import ConfigError, suggestion
from selfsight.views.spec import View

__all__ = [
    "adapted",
    "byol_views",
    "crops",
    "dino_views",
    "fitted",
    "moco_view",
    "plain",
    "simclr_view",
]


def simclr_view(strength: float = 1.0, **changes: Any) -> View:
    """SimCLR appendix A; `strength` scales the colour jitter."""
    s = strength
    view = View(jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s))
    return replace(view, **changes)


def moco_view(version: Literal[1, 2]) -> View:
    """MoCo v1's, or v2's with blur and a stronger jitter, also SimSiam's."""
    if version == 1:
        return View(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, blur=0.0)
    return View(crop=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))


def byol_views() -> list[View]:
    """BYOL table 6: the first view is always blurred, the second may be solarized."""
    view = View(jitter=(0.4, 0.4, 0.2, 0.1))
    return [replace(view, blur=1.0), replace(view, blur=0.1, solarize=0.2)]


def dino_views(small: int) -> list[View]:
    """BYOL's colours on two large crops and `small` small ones; without these, larger ranges."""
    scale = (0.4, 1.0) if small else (0.14, 1.0)
    large = [replace(view, crop=scale) for view in byol_views()]
    local = replace(large[0], crop=(0.05, 0.4), size=96, blur=0.5, count=small or 1)
    return [*large, local] if small else large


def crops(view: View | Sequence[View], small: int) -> list[View]:
    """Two large crops, of one view or of a list's two; with `small` crops beside them, drawn as
    the first, SwAV's multi-crop (section 3.3)."""
    large = [replace(view, count=2)] if isinstance(view, View) else list(view)
    if not small:
        return large
    return [
        *(replace(one, crop=(0.14, 1.0)) for one in large),
        replace(large[0], crop=(0.05, 0.14), size=96, count=small),
    ]


def plain(view: View) -> View:
    """The middle of an image, unchanged, for features of whole images."""
    return replace(view, crop=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter_p=0.0, gray=0.0,
                   blur=0.0, solarize=0.0, count=1)  # fmt: skip


def adapted(size: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to a paper's views, and what the size alone asks for: SimCLR's appendix B.9
    leaves the blur out at 32 px, where it would hide the object."""
    return {"blur": 0.0, **changes} if size <= 32 else dict(changes)


def fitted(
    views: Sequence[View], size: int, multiple: int = 1, changes: Mapping[str, Any] | None = None
) -> list[View]:
    """A paper's views, written for 224 px, at another size and with some numbers changed."""
    known = [f.name for f in fields(View) if f.name not in ("size", "count")]
    for name in changes or {}:
        if name in ("size", "count"):
            raise ConfigError(f"the views' {name} is not changed so: use --size and the method's "
                              "options")  # fmt: skip
        if name not in known:
            raise ConfigError(f"a view has no {name}{suggestion(name, known)}")
    return [replace(view.scaled(size, multiple=multiple), **(changes or {})) for view in views]
