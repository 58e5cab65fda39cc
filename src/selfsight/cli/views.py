"""selfsight views"""

import argparse
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfsight.cli.output import new_file, note, visible
from selfsight.cli.parser import Parser, opening, whole
from selfsight.cli.values import typed
from selfsight.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from selfsight.views import View

__all__ = ["configure", "run"]

_GAP = 4


def configure(parser: Parser) -> None:
    add = parser.add_argument
    parser.take_parts("method", "view")
    parser.take_data()
    add("--out", required=True, metavar="FILE.png", help="one row per image: itself, its views")
    add("--method", default="simclr", metavar="NAME", help="whose views (simclr)")
    add("--size", type=whole(1), default=224, metavar="PX", help="side of a full view (224)")
    add("--count", type=whole(1), default=8, metavar="N", help="images, spread over the data (8)")
    add("--seed", type=whole(0), default=0, metavar="N", help="another draw (0)")
    add("--force", action="store_true", help="overwrite FILE.png")


def run(arguments: argparse.Namespace) -> int:
    out = new_file(arguments.out, (".png",), force=arguments.force)
    # Imported here: --help must not wait for torch.
    import numpy as np

    from selfsight.data.decode import Undecodable
    from selfsight.data.sources import open_source
    from selfsight.views.cpu import compile_kernels

    compile_kernels(note)
    source = open_source(
        arguments.data,
        **opening(arguments),
    )
    views = _views(arguments, len(source))
    chosen = np.unique(np.linspace(0, len(source) - 1, arguments.count).round().astype(np.int64))
    try:
        images = [source.read(int(index)) for index in chosen]
    except Undecodable as error:
        raise DataError(f"an image of {source.name} can no longer be read: {error}") from None
    _mosaic(images, chosen, views, arguments.seed).save(out)
    print(visible(str(out)))
    return 0


def _views(arguments: argparse.Namespace, samples: int) -> "list[View]":
    """The method's views with its options; no weight is allocated to ask for them."""
    import torch

    from selfsight import methods
    from selfsight.encoders import create_encoder
    from selfsight.views import View, expand
    from selfsight.views.presets import adapted, fitted

    name = arguments.method
    options = typed("method", arguments.parts, methods.options(name), name)
    changes = typed("view", arguments.parts, inspect.signature(View).parameters, "a view")
    with torch.device("meta"):
        # A ViT serves every method, masked ones included.
        encoder = create_encoder("vit_tiny_patch16_224")
        method = methods.create(name, encoder, samples=samples, **options)
    return expand(fitted(method.views, arguments.size, changes=adapted(arguments.size, changes)))


def _mosaic(
    images: "Sequence[np.ndarray]", position: "np.ndarray", views: "Sequence[View]", seed: int
) -> "Image.Image":
    import numpy as np
    from PIL import Image

    from selfsight.views import render
    from selfsight.views.sample import center, sample
    from selfsight.views.spec import View

    sizes = np.array([image.shape[:2] for image in images])
    side = max(view.size for view in views)
    plain = View(size=side)
    columns = [(plain, center(side, sizes))]
    for index, view in enumerate(views):
        columns.append((view, sample(view, sizes, seed=seed, position=position, index=index)))
    cell = side + _GAP
    mosaic = Image.new("RGB", (cell * len(columns) - _GAP, cell * len(images) - _GAP), "white")
    for column, (view, table) in enumerate(columns):
        pixels = render(images, table, view, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        # Lab is signed; grey stands for zero.
        unit = (pixels + 1) / 2 if view.space == "lab" else pixels
        bytes_ = (unit.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for row, picture in enumerate(bytes_):
            mosaic.paste(Image.fromarray(picture), (cell * column, cell * row))
    return mosaic
