"""Whether every record is accounted for, and the table that says how."""

from collections.abc import Callable, Collection, Iterator, Mapping

from golden.records import Record
from golden.relations import Relation, problems, stale
from golden.table import NOT_IMPLEMENTED, RELATIONS

__all__ = ["Table", "grouped", "lines", "stale_note", "verdict"]

Table = Mapping[str, Mapping[str, Relation]]


def verdict(
    record: Record, table: Table = RELATIONS, missing: Collection[str] = NOT_IMPLEMENTED
) -> list[str]:
    """Why the record is not accounted for; empty when it is."""
    if record.method in missing:
        return [f"{record.method} is both done and not"] if record.method in table else []
    if record.method not in table:
        return [f"no word of the method {record.method}"]
    if record.source not in table[record.method]:
        return [f"no word of the source {record.source} for {record.method}"]
    return problems(table[record.method][record.source], record)


def stale_note(records: list[Record], table: Table = RELATIONS) -> str:
    """The note beside these records, all of one method and source, if they agree with us."""
    relation = table.get(records[0].method, {}).get(records[0].source)
    return relation.note if relation is not None and stale(relation, records) else ""


def grouped(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """By method and source."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.method, record.source), []).append(record)
    return groups


def lines(
    records: list[Record], judge: Callable[[Record], list[str]] = verdict
) -> Iterator[tuple[bool, str]]:
    """(accounted for, line) for each method and source, and one for all that is missing."""
    absent: dict[str, int] = {}
    for (method, source), group in grouped(records).items():
        if method in NOT_IMPLEMENTED:
            absent[method] = absent.get(method, 0) + len(group)
            continue
        bad = {record.case: found for record in group if (found := judge(record))}
        relation = RELATIONS.get(method, {}).get(source)
        noted = [record for record in group if relation is not None and relation.applies(record)]
        parts = []
        if len(group) - len(bad) - len(noted) > 0:
            parts.append(f"{len(group) - len(bad) - len(noted)} matched")
        if relation is not None and noted:
            how = "reproduced" if relation.theirs else "not offered"
            parts.append(f"{len(noted)} differ, {how}: {relation.note}")
        parts += [f"UNACCOUNTED {case}: {'; '.join(found)}" for case, found in bad.items()]
        parts += [f"STALE: {note}" for note in [stale_note(group)] if note and not bad]
        accounted = not bad and not stale_note(group)
        yield accounted, f"{method}, {source} -> {'; '.join(parts)}"
    if absent:
        names = ", ".join(f"{method} ({count})" for method, count in absent.items())
        yield True, f"not implemented: {names}"
