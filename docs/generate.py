"""Writes docs/methods.md, docs/methods/ and docs/coverage.md: python docs/generate.py

What the methods say of themselves, what benchmarks/results/learn.json measured of them, and
what docs/coverage.toml says of published tables.
"""

import functools
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from selfsight.cli.methods import summary
from selfsight.cli.values import annotation, expects, shown
from selfsight.methods import DEFAULT, FAMILIES, METHODS, describe, method_class, options

DOCS = Path(__file__).parent
MEASURED = DOCS.parent / "benchmarks" / "results" / "learn.json"

_MARK = "<!-- Written by docs/generate.py; change the methods' own words and run it again. -->"
_COVERAGE_MARK = "<!-- Written by docs/generate.py; change docs/coverage.toml and run it again. -->"

_INDEX = f"""\
# Methods

{_MARK}

`selfsight methods` lists them and `selfsight methods NAME` prints most of what is on a method's
page. An option is given as `--method.OPTION VALUE` or, in Python, as
`options={{"OPTION": VALUE}}`. Without `--method` a run uses `{DEFAULT}`.

The views are the paper's, written for images of 224 pixels; at another `--size` every side
scales with it, and at 32 pixels or less the blur is left out. `--view.FIELD VALUE` changes a
number of all views; operators that are off in every view are not shown. The recipe is the
paper's too, and `epochs` is the length of the paper's run: yours has 100 unless you say
otherwise. `--lr`, `--weight-decay`, `--warmup` and `--optimizer` replace the other numbers.
[add-a-method.md](add-a-method.md) tells how to write one more, and
[coverage.md](coverage.md) has commands for published tables.
"""

_COVERAGE = f"""\
# Coverage

{_COVERAGE_MARK}

This library sets out to reproduce the tables in a series of lectures on self-supervised learning:
306 rows, S1 to S306 in the lectures' order. For each: the commands that run it and what is
missing, or what it waits for.

The data are yours. `imagenet`, `imagenet100`, `tinyimagenet`, `places205` and `inaturalist18` are
folders with `train/` and `val/`; `VOCdevkit` holds `VOC2007` and `VOC2012`, `coco` its
`annotations/`, `ade20k` images and masks, `nyu` images and [targets](evaluate.md#protocols); the
other sets are [known by name](data.md). `--pretrained`
takes timm's weights from this machine's Hugging Face cache. Flags give the papers' settings as far
as these are known, and the method's own [recipe](methods.md) the rest. The linear probe is
[ours](evaluate.md#protocols), a logistic regression on embeddings of central crops, where the
papers train one by SGD on augmented crops. The tests put every command through
the command line's own parser and build its method; at this size the trainings take days and have
not been run. What has been measured is on the [methods' pages](methods.md).
"""

# These mean nothing while the other, by which they are switched on, is zero.
_OWNED = {"jitter": "jitter_p", "blur_sigma": "blur"}
_RANGES = ("crop", "ratio", "blur_sigma")
# Numbers of a recipe that one optimizer reads and another does not.
_UNREAD = {
    "adamw": {"momentum", "spared_rate"},
    "larc": {"betas"},
    "lars": {"betas"},
    "sgd": {"betas", "spared_rate"},
}
_STATES = {
    "now": "have commands for all of it",
    "in part": "have commands for a part of it",
    "later": "wait for a part of this library",
    "external": "need weights or results of others",
}


@functools.cache
def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    rows = [row for _, table in tables() for row in table]
    texts = {DOCS / "methods.md": _index(), DOCS / "coverage.md": _coverage()}
    for name in sorted(METHODS):
        texts[DOCS / "methods" / f"{name}.md"] = _method(name, rows)
    return texts


def stale(folder: Path = DOCS) -> list[str]:
    """Generated pages in `folder` that are missing, out of date, or of no method."""
    texts = {path.relative_to(DOCS): text for path, text in pages().items()}
    old = [
        path
        for path, text in texts.items()
        if not (folder / path).is_file() or (folder / path).read_text(encoding="utf-8") != text
    ]
    found = [path.relative_to(folder) for path in (folder / "methods").glob("*")]
    return sorted(map(str, {*old, *(path for path in found if path not in texts)}))


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    commands: lines, in which a $NAME takes each of the values in `each`
    python: an expression instead
    lacks: what of a row that runs is not measured, or not as published, yet
    later, external: what a row that does not run waits for
    same: the row that this one repeats
    """

    id: int
    what: str
    commands: tuple[str, ...] = ()
    each: tuple[dict[str, Any], ...] = ()
    python: str = ""
    lacks: str = ""
    later: str = ""
    external: str = ""
    same: int | None = None

    @property
    def state(self) -> str:
        if self.later or self.external:
            return "later" if self.later else "external"
        return "in part" if self.lacks else "now"

    def lines(self) -> Iterator[str]:
        """The commands as a shell would run them."""
        for values in self.each or ({},):
            for command in self.commands:
                yield Template(command).substitute(values)

    def uses(self, method: str) -> bool:
        return any(re.search(rf"--method {method}(?!\w)", command) for command in self.commands)


def tables(path: Path = DOCS / "coverage.toml") -> list[tuple[dict[str, Any], list[Row]]]:
    """Each table with its rows."""
    with path.open("rb") as file:
        found = tomllib.load(file)["table"]
    rows: dict[int, Row] = {}
    for table in found:
        for facts in table["rows"]:
            rows[facts["id"]] = _row(table, facts, rows)
    return [(table, [rows[facts["id"]] for facts in table["rows"]]) for table in found]


def _row(table: dict[str, Any], facts: dict[str, Any], earlier: dict[int, Row]) -> Row:
    kinds = {"pretrain", "evaluate", "command", "python", "same", "later", "external"} & set(facts)
    strange = set(facts) - kinds - {"id", "what", "each", "lacks"}
    if len(kinds) != 1 or strange:
        raise ValueError(f"S{facts['id']} says {sorted(kinds)}, {sorted(strange)}: one is needed")
    (kind,) = kinds
    own = facts[kind]
    if kind == "same":
        row = earlier[own]
        return Row(**{**vars(row), "id": facts["id"], "same": own})
    if kind in ("python", "later", "external"):
        return Row(facts["id"], facts["what"], **{kind: own})
    lacks = facts.get("lacks") or table.get("lacks", "")
    if kind == "evaluate":
        lines = [f"selfsight evaluate {own} {where}" for where in table["evaluate"]]
        return Row(facts["id"], facts["what"], tuple(lines), lacks=lacks)
    each = tuple(facts.get("each") or table.get("each", ()))
    lines = own if kind == "command" else list(_runs(table, facts, each))
    if len(each) == 1:
        lines, each = [Template(line).substitute(each[0]) for line in lines], ()
    return Row(facts["id"], facts["what"], tuple(lines), each, lacks=lacks)


def _runs(
    table: dict[str, Any], facts: dict[str, Any], each: tuple[dict[str, Any], ...]
) -> Iterator[str]:
    """A training and its measurements, for each run of a row."""
    runs = [facts["pretrain"]] if isinstance(facts["pretrain"], str) else facts["pretrain"]
    for number, words in enumerate(runs, 1):
        out = f"runs/s{facts['id']}" + (f"-{number}" if len(runs) > 1 else "")
        out += f"-${next(iter(each[0]))}" if len(each) > 1 else ""
        yield " ".join(
            ["selfsight pretrain", *f"{table['pretrain']} {words}".split(), "--out", out]
        )
        for where in table["evaluate"]:
            yield f"selfsight evaluate {out} {where}"


def _coverage() -> str:
    found = tables()
    states = Counter(row.state for _, table in found for row in table)
    total = sum(states.values())
    counts = [(str(states[state]), words) for state, words in _STATES.items()]
    parts = [_COVERAGE, _table(("of the rows", ""), [*counts, (str(total), "in all")])]
    deck = None
    for table, rows in found:
        if table["deck"] != deck:
            deck = table["deck"]
            parts.append(f"## Lecture {deck}")
        cells = [(f"S{row.id}", row.what, row.state, _how(row)) for row in rows]
        parts += [f"### {table['title']}", _table(("row", "what", "runs", "how"), cells)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _how(row: Row) -> str:
    """Commands, or what is missing, in one cell."""
    if row.later or row.external:
        return f"needs {row.later or row.external}"
    if row.same is not None:
        return f"as S{row.same}"
    lines = [f"`{line}`" for line in (row.python, *row.commands) if line]
    if row.each:
        names = ", ".join(f"`${name}`" for name in row.each[0])
        values = [", ".join(map(str, values.values())) for values in row.each]
        lines.append(f"with {names} = {'; '.join(values)}")
    if row.lacks:
        lines.append(f"still needs {row.lacks}")
    return "<br>".join(lines)


def _index() -> str:
    parts = [_INDEX.strip("\n")]
    for family, names in FAMILIES.items():
        columns = ("name", "title", "year", "what", "kNN, %")
        parts += [f"## {family}", _table(columns, [_listed(name) for name in names.split()])]
    return "\n\n".join(parts) + "\n"


def _listed(name: str) -> tuple[str, ...]:
    """A method's row in the list; its accuracy is that of the intact run, not of ablations."""
    line = summary(name, method_class(name))
    scores = [_percent(fact["knn"]) for fact in _measured(name)
              if fact.get("knn") and not fact.get("twin")]  # fmt: skip
    link = f"[`{name}`](methods/{name}.md)"
    return link, line["title"], line["year"], line["what"], "; ".join(scores) or "–"


def _method(name: str, rows: list[Row]) -> str:
    facts = describe(name)
    kinds = {option: annotation(p) for option, p in options(name).items()}
    numbers = [f"S{row.id}" for row in rows if row.uses(name)]
    parts = [
        f"# {name}\n\n{_MARK}",
        facts["title"],
        facts["paper"],
        *([f"Loss: `{facts['equation']}`"] if facts["equation"] else []),
        _help(facts["help"]),
        "## Options",
        _table(
            ("option", "default", "takes"),
            [(f"`{o}`", f"`{shown(v)}`", expects(kinds[o])) for o, v in facts["options"].items()],
        ),
        "## Views",
        _views(facts["views"]),
        "## Recipe",
        _recipe(facts["recipe"]),
        "## Differs from the paper",
        "\n".join(f"- {text}" for text in facts["deviations"]) or "Nothing on record.",
        "## Measured",
        _results(_measured(name)),
        "## Published tables",
        f"[Rows](../coverage.md) {', '.join(numbers)}." if numbers else "None.",
        "All methods: [methods.md](../methods.md).",
    ]
    return "\n\n".join(parts) + "\n"


def _measured(name: str) -> list[dict[str, Any]]:
    """The rows of the learning benchmark that concern a method."""
    if not MEASURED.is_file():
        return []
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    return [fact for fact in found if fact["method"] == name]


def _results(found: list[dict[str, Any]]) -> str:
    if not found:
        return "Not yet measured."
    rows = [
        (
            fact["name"],
            fact["encoder"],
            str(_count(fact["seeds"])),
            f"{fact['views']:,}",
            *(_percent(fact[kind]) if fact.get(kind) else "–" for kind in ("knn", "linear")),
            "yes" if fact["passes"] else "no",
        )
        for fact in found
    ]
    columns = ("run", "encoder", "seeds", "views seen", "kNN, %", "linear, %", "above its controls")
    return _table(columns, rows)


def _count(seeds: int | list[int]) -> int:
    return seeds if isinstance(seeds, int) else len(seeds)


def _percent(score: dict[str, float]) -> str:
    """The mean over seeds, and its interval."""
    mean, low, high = (100 * score[name] for name in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _help(text: str) -> str:
    """The class's own words: paragraphs, then one point for each `name: what`."""
    *words, options = text.split("\n\n")
    points: list[str] = []
    for line in options.splitlines():
        if line.startswith(" "):
            points[-1] += f" {line.strip()}"
        else:
            points.append(f"- {line}")
    return "\n\n".join([*words, "\n".join(points)])


def _views(views: list[dict[str, Any]]) -> str:
    columns = ("field", *(f"view {number}" for number in range(1, len(views) + 1)))
    used = [field for field in views[0] if any(view[_OWNED.get(field, field)] for view in views)]
    rows = [(field, *(_short(view[field], field in _RANGES) for view in views)) for field in used]
    return _table(columns, rows)


def _recipe(recipe: dict[str, Any]) -> str:
    unread = {"clip_each"} if recipe["clip"] is None else set()
    unread |= _UNREAD[recipe["optimizer"]] | ({"last"} if recipe["drops"] else set())
    unread |= {"spared_rate"} if recipe["exempt"] == "none" else set()
    rows = [(k, _short(v)) for k, v in recipe.items() if v not in (None, ()) and k not in unread]
    return _table(("number", "value"), rows)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ("-",) * len(columns), *rows])


def _short(value: Any, span: bool = False) -> str:
    if isinstance(value, tuple | list):
        return (" to " if span else ", ").join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _write() -> None:
    texts = pages()
    (DOCS / "methods").mkdir(exist_ok=True)
    for path in {*(DOCS / "methods").glob("*.md")} - set(texts):
        path.unlink()
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write()
