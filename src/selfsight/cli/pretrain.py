"""selfsight pretrain"""

import argparse
import inspect
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from selfsight.cli.output import document, note, table, visible
from selfsight.cli.parser import Parser, number, whole
from selfsight.cli.settings import merged
from selfsight.cli.values import shown, typed
from selfsight.errors import ConfigError

if TYPE_CHECKING:
    from selfsight.run import Run

__all__ = ["configure", "run", "show"]


def configure(parser: Parser) -> None:
    add = parser.add_argument
    parser.take_parts("method", "view", "regularize")
    parser.set_defaults(parser=parser)
    add("data", nargs="?", metavar="DATA", help="folder, list, shards, .npz, named set, synthetic")
    add("--method", metavar="NAME", help="see selfsight methods; or my.module:MyMethod")
    add("--encoder", metavar="NAME", help="any timm architecture")
    add("--size", type=whole(1), metavar="PX", help="side of the images the encoder sees")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the data")
    length.add_argument("--time", metavar="2h", help="train for so long instead: 90m, 2h, 1d")
    add("--batch", type=whole(1), metavar="N", help="images per optimizer step, all ranks")
    add("--lr", type=number(0), metavar="X", help="learning rate, instead of the recipe's")
    add("--seed", type=whole(0), metavar="N", help="the same seed gives the same run")
    add("--out", metavar="DIR", help="the run's folder; must be new or empty")
    add("--pretrained", nargs="?", const=True, metavar="PATH", help="start from trained weights")
    add("--resume", action="store_const", const=True, help="continue --out if it holds a run")
    add("--device", metavar="NAME", help="auto, cpu or cuda")
    add("--optimizer", metavar="NAME", help="instead of the recipe's")
    add("--weight-decay", type=number(0), metavar="X", help="instead of the recipe's")
    add("--warmup", type=number(0), metavar="N", help="epochs of rising learning rate")
    add("--accumulate", type=whole(1), metavar="N", help="parts a batch is computed in")
    add("--precision", metavar="NAME", help="auto, fp32 or bf16")
    add("--compile", action="store_const", const=True, help="torch.compile the encoder")
    add("--threads", "--workers", type=whole(1), metavar="N", help="threads that load images")
    add("--max-bad-fraction", type=number(0, 1), metavar="X", help="unreadable files tolerated")
    add("--download", action="store_const", const=True, help="allow fetching a named set")
    add("--cache", metavar="DIR", help="where lists and reduced photos are kept")
    add("--follow-links", action="store_const", const=True, help="take images links lead to")
    add("--whole", action="store_const", const=True, help="do not reduce large photos, once")
    add("--gradients", action="store_const", const=True, help="log each layer's gradient norm")
    add("--save-every", type=whole(1), metavar="N", help="steps between checkpoints")
    add("--labels", action="store_const", const=True, help="class sub-folders: watch kNN")
    add("--quiet", action="store_const", const=True, help="no progress")
    add("--config", metavar="FILE", help="JSON with these names; flags win")
    add("--print-config", action="store_true", help="print every value and why; do nothing else")
    add("--json", action="store_true", help="print one JSON document")
    parser.epilog = (
        "An option of the method is written --method.OPTION VALUE, "
        "for example --method.temperature 0.2; selfsight methods NAME lists them. "
        "A number of the views is written --view.FIELD VALUE and holds for all of them, "
        "for example --view.crop 0.2,1 --view.gray 0. "
        "--regularize.variance and --regularize.covariance add VICReg's terms to the loss."
    )


def run(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if arguments.print_config:
        return _print_config(settings, arguments.json)
    import selfsight

    return show(selfsight.pretrain(**settings), arguments.json)


def show(result: "Run", as_json: bool) -> int:
    """What a script needs from a finished run; the rest was told on the way."""
    # Under torchrun each rank stands here, and one result is wanted.
    if os.environ.get("RANK", "0") != "0":
        return 0
    if as_json:
        document({"run": result.path, "verdict": result.verdict, "config": result.config})
    else:
        # The closing words: what the watchers saw, and what they cannot know.
        for verdict in result.verdict.values():
            note(str(verdict))
        note(f"the model lies in {visible(str(result.path / 'model'))}")
        print(visible(str(result.path)))
    return 0


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments for the façade: only what was given, so that defaults live in one place."""
    settings, parts = merged(arguments.parser, arguments)
    if "data" not in settings:
        taken = settings.get("pretrained", True)
        hint = "" if taken is True else f" (--pretrained took {taken}; write DATA before it)"
        raise ConfigError(f"missing DATA{hint}; see selfsight pretrain --help")
    if "out" not in settings and not arguments.print_config:
        raise ConfigError("missing --out, the run's folder; see selfsight pretrain --help")
    if "epochs" in settings and "time" in settings:
        raise ConfigError("epochs and time exclude each other; keep one")
    from selfsight import methods
    from selfsight.train.regularize import Regularizer
    from selfsight.views.spec import View

    method = settings.get("method") or methods.DEFAULT
    for part in parts:
        if part.partition(".")[0] not in ("method", "view", "regularize"):
            raise ConfigError(f"unknown key {part}; write method.{part} or view.{part}")
    terms = inspect.signature(Regularizer).parameters
    found = {
        "options": typed("method", parts, methods.options(method), method),
        "view": typed("view", parts, inspect.signature(View).parameters, "a view"),
        "regularize": typed("regularize", parts, terms, "the loss"),
    }
    return settings | {name: values for name, values in found.items() if values}


def _print_config(settings: dict[str, Any], as_json: bool) -> int:
    """Every value and where it comes from; as JSON, what --config takes."""
    from selfsight.data.sources import open_source
    from selfsight.train.config import Settings, needs_labels, resolve

    asked = {f.name for f in fields(Settings)} & set(settings)
    opening = {"labels", "max_bad_fraction", "download", "cache", "follow_links"} & set(settings)
    how = {name: settings[name] for name in opening}
    if needs_labels(settings.get("method")):
        how["labels"] = True
    source = open_source(settings["data"], **how)
    config = resolve(Settings(**{name: settings[name] for name in asked}), source).config
    rows: list[tuple[str, Any, str]] = []
    for name, value, reason in config.table():
        if name == "options":
            rows += [(f"method.{option}", v, reason) for option, v in value.items()]
        elif name == "view":
            rows += [(f"view.{field}", v, reason) for field, v in value.items()]
        elif name == "regularize":
            rows += [(f"regularize.{term}", v, reason) for term, v in value.items()]
        elif name != "epochs" or "time" not in settings:
            rows.append((name, value, reason))
    rows += [(name, value, "given") for name, value in settings.items() if name not in asked]
    if as_json:
        document({name: value for name, value, _ in rows})
    else:
        table(("name", "value", "why"), [(name, shown(value), why) for name, value, why in rows])
    return 0
