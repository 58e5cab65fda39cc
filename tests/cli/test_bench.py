"""What the machine is timed by, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfsight import bench
from selfsight.bench import Probe, Timing
from selfsight.cli import main
from selfsight.errors import ConfigError
from selfsight.machine import cpu_quota

Captured = pytest.CaptureFixture[str]

CALM = Probe(gflops=50.0, busy=1.98, threads=2)
TIMING = Timing("decode", "2 threads", 800.0, 700.0, 900.0, 5, CALM, CALM)


def test_cases(capsys: Captured) -> None:
    timings = bench.run(["views32", "decode", "views32"], threads=1)
    assert capsys.readouterr() == ("", "")
    assert [timing.case for timing in timings] == ["views32", "decode"]
    for timing in timings:
        assert 0 < timing.slowest <= timing.median <= timing.fastest
        assert timing.turns >= 5
        assert timing.how == "1 thread"
        assert timing.before.threads == timing.after.threads == 1
    assert timings[0].median > timings[1].median


@pytest.mark.parametrize("name", ["views224", "multicrop"])
def test_photos_are_painted(name: str) -> None:
    (prepare,) = bench.CASES[name].works
    work = prepare(2)
    assert work is not None
    images, call, how = work
    assert (images, how) == (32, "2 threads")
    call()


@pytest.mark.heavy
def test_all_cases() -> None:
    timings = bench.run()
    assert list(dict.fromkeys(timing.case for timing in timings)) == list(bench.CASES)
    assert timings[-1].case == "step"
    assert {timing.turns for timing in timings} == {5}


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    assert bench.probe(seconds=0, threads=before + 1).threads == before + 1
    assert torch.get_num_threads() == before


def test_a_probe() -> None:
    found = bench.probe(seconds=0.05, threads=1, dtype=torch.float32)
    assert found.gflops > 0
    assert 0 < found.busy < 1.5


@pytest.mark.parametrize(
    ("busy", "threads", "starved"),
    [(1.5, 2, False), (1.49, 2, True), (3.1, 4, False), (2.9, 4, True), (0.2, 1, False)],
)
def test_starved(busy: float, threads: int, starved: bool) -> None:
    assert Probe(50.0, busy, threads).starved is starved


@pytest.mark.parametrize(
    ("after", "quiet"),
    [
        (CALM, True),
        (replace(CALM, gflops=50 / 1.29), True),
        (replace(CALM, gflops=50 / 1.31), False),
        (replace(CALM, gflops=50 * 1.31), False),
        (replace(CALM, busy=1.2), False),
    ],
)
def test_a_machine_that_is_not_quiet_is_told(
    after: Probe, quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    found = [TIMING, replace(TIMING, after=after)]
    assert bench.quiet(found) is quiet
    monkeypatch.setattr(bench, "run", lambda cases, threads, tell: found)
    assert main(["bench"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert out.splitlines()[1].split()[:7] == ["decode", "2", "threads", "800", "700", "–", "900"]
    assert err == ("" if quiet else "the machine was not quiet: run it again\n")
    assert main(["bench", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["quiet"] is quiet
    assert document["timings"][0]["before"] == {"gflops": 50.0, "busy": 1.98, "threads": 2}


def test_what_was_asked_is_passed_on(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    seen: list[object] = []

    def run(cases: list[str], threads: int | None, tell: object) -> list[Timing]:
        seen.append((cases, threads))
        return [TIMING]

    monkeypatch.setattr(bench, "run", run)
    words = ["bench", "--case", "decode", "step", "--threads", "3", "--case", "views32"]
    assert main(words) == 0
    assert main(["bench"]) == 0
    assert seen == [(["decode", "step", "views32"], 3), ([], None)]


def test_an_unknown_case_is_one_line(capsys: Captured) -> None:
    assert main(["bench", "--case", "veiws32"]) == 2
    line = "selfsight bench: unknown case veiws32; did you mean views32?\n"
    assert capsys.readouterr() == ("", line)
    with pytest.raises(ConfigError, match="unknown case x; choose from views32, views224"):
        bench.run(["x"])


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a", {"a/cpu.max": "200000 100000", "cpu.max": "50000 100000"}, 0.5),
        ("0::/not/to/be/seen", {"cpu.max": "100000 100000"}, 1.0),
        (
            "2:cpu,cpuacct:/a\n0::/",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("2:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/", {"cpu.max": "50000 100000"}, None),
        ("", {}, None),
    ],
)
def test_quotas_of_containers(
    own: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == quota
    assert cpu_quota(tmp_path / "groups", tmp_path / "absent") is None
