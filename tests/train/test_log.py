"""What a run writes down and what it tells the person who waits."""

import io
import json
import os
import resource

import pytest

from selfsight.errors import StorageError
from selfsight.train.log import Lines, Teller, duration, truncate


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path, steps=5):
    lines = Lines(path)
    for step in range(steps):
        lines.write(step=step, name="é\n")
    lines.settle()
    lines.close()
    return path.read_bytes()


@pytest.mark.parametrize(("step", "left"), [(0, 0), (3, 3), (5, 5), (99, 5)])
def test_steps_to_be_done_again_are_dropped(tmp_path, step, left):
    path = tmp_path / "m.jsonl"
    written(path)
    truncate(path, step)
    assert [row["step"] for row in rows(path)] == list(range(left))
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_a_line_cut_anywhere_is_dropped(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = written(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        truncate(path, 99)
        kept = path.read_bytes()
        assert kept == b"".join(whole.splitlines(keepends=True)[: whole[:length].count(b"\n")])


@pytest.mark.parametrize(
    "strange", [b"\0" * 40, b"null\n", b"[]\n", b"{}\n", b"\xff\xfe\n", b'"a"\n']
)
def test_a_strange_line_ends_what_is_kept(tmp_path, strange):
    path = tmp_path / "m.jsonl"
    whole = written(path)
    path.write_bytes(whole + strange + b'{"step": 5}\n')
    truncate(path, 99)
    assert path.read_bytes() == whole


def test_nothing_to_truncate(tmp_path):
    truncate(tmp_path / "none.jsonl", 3)
    assert os.listdir(tmp_path) == []


def test_lines_are_added_and_seen_at_once(tmp_path):
    path = tmp_path / "m.jsonl"
    for step in range(2):
        lines = Lines(path)
        lines.write(step=step)
        assert len(rows(path)) == step + 1
        lines.close()


def test_a_full_disk_is_told_once_with_path_and_bytes(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = Lines(path)
    lines.write(step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(StorageError, match=r"m\.jsonl \(12 bytes\): File too large"):
            lines.write(step=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines.close()
    truncate(path, 9)
    assert rows(path) == [{"step": 0}]
    with pytest.raises(StorageError, match="No such file"):
        Lines(tmp_path / "none" / "m.jsonl")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.4, "0 s"), (12, "12 s"), (59.6, "1 min 00 s"), (190, "3 min 10 s"),
     (3599.7, "1 h 00 min"), (7500, "2 h 05 min"), (90_000, "25 h 00 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


class Watch:
    """A clock that a test turns on."""

    now = 1000.0

    def __call__(self):
        return self.now


def told(steps, seconds, *, first=0, total=100, **options):
    """What a Teller says of `steps` steps of `seconds` each."""
    watch, stream = Watch(), io.StringIO()
    with Teller(total, 8, stream=stream, clock=watch, **options) as teller:
        watch.now += 500  # reading the data is not work
        teller.started(first)
        for done in range(first + 1, first + steps + 1):
            watch.now += seconds
            teller.step(done, 1.5)
    return stream.getvalue().splitlines()


def test_a_line_every_half_minute():
    lines = told(20, 7.0)
    steps = [line.partition("  ")[0] for line in lines if line.startswith("step")]
    assert steps == ["step 5/100", "step 10/100", "step 15/100", "step 20/100"]
    assert lines[0] == "step 5/100  loss 1.5000  1 images/s  11 min 05 s left"


def test_after_twenty_steps_the_expected_time_is_told():
    assert told(19, 0.5) == []
    assert told(20, 0.5) == ["expected: 50 s for the whole run"]
    assert told(60, 0.5)[0] == "expected: 50 s for the whole run"
    assert len([line for line in told(60, 0.5) if line.startswith("expected")]) == 1


def test_a_resumed_run_counts_its_own_steps():
    assert told(20, 2.0, first=60)[-1] == "expected: 3 min 20 s for the whole run"
    (line,) = [line for line in told(16, 2.0, first=60) if line.startswith("step")]
    assert line.endswith("50 s left")
    assert line.startswith("step 75/100")


def test_quiet_says_nothing():
    assert told(60, 5.0, quiet=True) == []


def test_on_a_terminal_there_is_a_bar_and_words_stay(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Teller(10, 8, stream=stream) as teller:
        teller.say("[red]not markup")
        teller.started(0)
        teller.step(1, 0.25)
    assert "[red]not markup" in stream.getvalue()
    assert "loss 0.2500" in stream.getvalue()


def test_a_clock_that_stands_still_or_jumps_does_no_harm():
    assert told(25, 0.0) == ["expected: 0 s for the whole run"]
    watch, stream = Watch(), io.StringIO()
    with Teller(10, 8, stream=stream, clock=watch) as teller:
        teller.started(0)
        watch.now += 36_000
        teller.step(1, 1.0)
    assert stream.getvalue().endswith("90 h 00 min left\n")
