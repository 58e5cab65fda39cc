import json

import measure
import pytest


def test_turns_alternate_and_the_warm_up_is_not_counted():
    heard = []
    sides = {name: lambda runs, name=name: heard.append((name, runs)) for name in "ab"}
    taken = measure.interleaved(sides, 3, 0)
    assert heard == [("a", 1), ("b", 1)] + 3 * [("a", 1), ("b", 1)]
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}


def test_rates_are_images_per_second():
    assert measure.rates(100, [0.5, 0.25, 1.0]) == {"median": 200, "min": 100, "max": 400}


@pytest.mark.parametrize(("version", "kept"), [("1", {"old", "new"}), ("2", {"new"})])
def test_earlier_cases_stay_while_versions_do(version, kept, tmp_path):
    file = tmp_path / "result.json"
    measure.write(file, {"torch": "1", "size": (1, 2), "load": 0.5, "cases": {"old": 1}})
    measure.write(file, {"torch": version, "size": (1, 2), "load": 0.7, "cases": {"new": 2}})
    assert set(json.loads(file.read_bytes())["cases"]) == kept


def _count(name, number, processes):
    return lambda: (name, number, processes)


def test_a_crew_does_its_parts_at_once():
    with measure.Crew(_count, processes=2, threads=1, keep=False) as crew:
        assert crew.ask("part", 2) == [("part", 0, 2), ("part", 1, 2)]
