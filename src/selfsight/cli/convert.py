"""selfsight convert"""

import argparse
from typing import TYPE_CHECKING

from selfsight.cli.output import document, note, visible
from selfsight.cli.parser import Parser, number, whole

if TYPE_CHECKING:
    from selfsight.encoders.weights import Triple

__all__ = ["configure", "run"]


def configure(parser: Parser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a file of torch.save, or .safetensors")
    add("--encoder", required=True, metavar="NAME", help="its architecture, by timm's name")
    add("--out", required=True, metavar="DIR", help="the model folder to write")
    add("--from", dest="layout", default="auto", metavar="LAYOUT", help="moco_v2, dino, …, or auto")
    add("--branch", choices=("student", "teacher"), help="else the one that its paper evaluates")
    add("--size", type=whole(1), metavar="PX", help="side of the images it was trained on")
    add("--mean", type=_triple, metavar="R,G,B", help="of the images, else the layout's")
    add("--std", type=_triple, metavar="R,G,B", help="of the images, else the layout's")
    add("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    from selfsight.export import convert

    found = convert(
        arguments.checkpoint,
        arguments.out,
        encoder=arguments.encoder,
        layout=arguments.layout,
        branch=arguments.branch,
        size=arguments.size,
        mean=arguments.mean,
        std=arguments.std,
    )
    model = found.encoder
    note(f"{found.layout}, its {found.branch}; left out: {', '.join(found.left) or 'nothing'}")
    note(f"{model.size} px, mean {_shown(model.mean)}, std {_shown(model.std)}")
    if arguments.json:
        facts = {name: getattr(model, name) for name in ("name", "size", "mean", "std", "dim")}
        more = {"layout": found.layout, "branch": found.branch, "left": found.left}
        document({"out": arguments.out, **facts, **more})
    else:
        print(visible(arguments.out))
    return 0


def _triple(text: str) -> "Triple":
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers like 0.5,0.5,0.5, got {text}")
    r, g, b = map(number(0), parts)
    return r, g, b


def _shown(values: "Triple") -> str:
    return ",".join(f"{value:g}" for value in values)
