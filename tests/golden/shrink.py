"""Make this folder's small copy of a folder of golden records.

PYTHONPATH=tests python -m golden.shrink SOURCE_DIR

Kept are, of every method that is implemented and every source, the smallest records: one where
its convention is ours and one where it differs (all of them where it may), one that is not
finite and, of all, one that has arrays in float32.
"""

import json
import sys
from pathlib import Path

import numpy as np

from golden.records import Record, load
from golden.relations import Relation, wrong
from golden.table import RELATIONS


def size(record: Record) -> int:
    return sum(array.nbytes for array in [*record.inputs.values(), *record.outputs.values()])


def _differs(relation: Relation, record: Record) -> bool:
    """Whether the note is needed, and not merely allowed, for the record."""
    if not (record.finite and relation.applies(record)):
        return relation.applies(record)
    return bool(wrong(relation.ours, relation, record))


def chosen(records: list[Record]) -> list[Record]:
    kept: dict[object, Record] = {}
    for record in sorted(records, key=size):
        relation = RELATIONS.get(record.method, {}).get(record.source)
        if relation is not None:
            where = record.case if relation.optional else _differs(relation, record)
            kept.setdefault((record.method, record.source, where, record.finite), record)
            if record.single:
                kept.setdefault("single", record)
    return list(kept.values())


def main(source: Path, target: Path) -> None:
    index = json.loads((source / "index.json").read_text("utf-8"))
    names = {record.name for record in chosen(load(source))}
    entries = [
        entry
        for entry in index["records"]
        if f"{entry['method']}-{entry['source']}-{entry['case']}" in names
    ]
    for old in target.glob("*.npz"):
        old.unlink()
    for file in sorted({entry["file"] for entry in entries}):
        own = [entry for entry in entries if entry["file"] == file]
        keys = {key for e in own for part in ("inputs", "outputs") for key in e[part].values()}
        with np.load(source / file, allow_pickle=False) as stored:
            np.savez_compressed(target / file, **{key: stored[key] for key in sorted(keys)})
    text = json.dumps({**index, "records": entries}, indent=1)
    (target / "index.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
