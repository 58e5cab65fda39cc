"""Writes docs/methods.md from what the methods say of themselves: python docs/generate.py"""

from pathlib import Path
from typing import Any

from selfsight.cli.values import annotation, expects, shown
from selfsight.methods import DEFAULT, METHODS, describe, options

PAGE = Path(__file__).with_name("methods.md")

_INTRODUCTION = f"""\
# Methods

<!-- Written by docs/generate.py; change the methods' own words and run it again. -->

`selfsight methods` lists them and `selfsight methods NAME` prints what is below. An option is
given as `--method.OPTION VALUE` or, in Python, as `options={{"OPTION": VALUE}}`. Without
`--method` a run uses `{DEFAULT}`.

The views are the paper's, written for images of 224 pixels; at another `--size` every side
scales with it, and at 32 pixels or less the blur is left out. `--view.FIELD VALUE` changes a
number of all views; operators that are off in every view are not shown. The recipe is the
paper's too, and `epochs` is the length of the paper's run: yours has 100 unless you say
otherwise. `--lr`, `--weight-decay`, `--warmup` and `--optimizer` replace the other numbers.
[add-a-method.md](add-a-method.md) tells how to write one more.
"""

# These mean nothing while the other, by which they are switched on, is zero.
_OWNED = {"jitter": "jitter_p", "blur_sigma": "blur"}
_RANGES = ("crop", "ratio", "blur_sigma")
# Numbers of a recipe that one optimizer reads and another does not.
_UNREAD = {"adamw": {"momentum"}, "larc": {"betas"}, "lars": {"betas"}, "sgd": {"betas"}}


def methods_page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(_section(name) for name in sorted(METHODS))])


def _section(name: str) -> str:
    facts = describe(name)
    kinds = {option: annotation(p) for option, p in options(name).items()}
    parts = [
        f"## {name}",
        facts["title"],
        facts["paper"],
        _help(facts["help"]),
        "**Options**",
        _table(
            ("option", "default", "takes"),
            [(f"`{o}`", f"`{shown(v)}`", expects(kinds[o])) for o, v in facts["options"].items()],
        ),
        "**Views**",
        _views(facts["views"]),
        "**Recipe**",
        _recipe(facts["recipe"]),
        "**Differs from the paper**",
        "\n".join(f"- {text}" for text in facts["deviations"]) or "Nothing on record.",
    ]
    return "\n\n".join(parts) + "\n"


def _help(text: str) -> str:
    """The class's own words: a sentence, then one point for each `name: what`."""
    first, _, rest = text.partition("\n\n")
    points: list[str] = []
    for line in rest.splitlines():
        if line.startswith(" "):
            points[-1] += f" {line.strip()}"
        elif line:
            points.append(line)
    return "\n".join([first, "", *(f"- {point}" for point in points)])


def _views(views: list[dict[str, Any]]) -> str:
    columns = ("field", *(f"view {number}" for number in range(1, len(views) + 1)))
    used = [field for field in views[0] if any(view[_OWNED.get(field, field)] for view in views)]
    rows = [(field, *(_short(view[field], field in _RANGES) for view in views)) for field in used]
    return _table(columns, rows)


def _recipe(recipe: dict[str, Any]) -> str:
    unread = {"clip_each"} if recipe["clip"] is None else set()
    unread |= _UNREAD[recipe["optimizer"]]
    rows = [(k, _short(v)) for k, v in recipe.items() if v is not None and k not in unread]
    return _table(("number", "value"), rows)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ("-",) * len(columns), *rows])


def _short(value: Any, span: bool = False) -> str:
    if isinstance(value, tuple | list):
        return (" to " if span else ", ").join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


if __name__ == "__main__":
    PAGE.write_text(methods_page(), encoding="utf-8")
