"""Help, wrong commands and options, errors and exit codes."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import selfsight
from selfsight import errors
from selfsight.cli import COMMANDS, main

PRETRAIN = ["pretrain", "photos", "--out", "run"]
HEAVY = ("torch", "numpy", "timm", "PIL", "rich", "pyarrow")


def interpreter(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfsight", *words]
    return subprocess.run(command, text=True, timeout=60, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from selfsight.cli import main\n"
        f"assert main({words!r}) == 0\n"
        f"assert not {{*sys.modules}} & {{*{HEAVY!r}}}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_help_is_quick() -> None:
    # Processor time: a busy machine makes it slow, but not ours to blame.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = interpreter("--help", capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_help_of_a_command_ignores_what_else_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--nonsense", "--help"]) == 0
    assert "--epochs N" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"selfsight {selfsight.__version__}\n"


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pretrian"], "selfsight: unknown command pretrian; did you mean pretrain?"),
        (["xyzzy"], "selfsight: unknown command xyzzy; see selfsight --help"),
        (["--verson"], "selfsight: unknown option --verson; did you mean --version?"),
        (
            ["pretrain", "--epoch", "3"],
            "selfsight pretrain: unknown option --epoch; did you mean --epochs?",
        ),
        # Nothing is abbreviated: a later option must not change what an earlier word means.
        (
            ["pretrain", "x", "--weight=1"],
            "selfsight pretrain: unknown option --weight; did you mean --weight-decay?",
        ),
        (
            ["pretrain", "x", "--epochs", "many"],
            "selfsight pretrain: --epochs: expected a whole number ≥ 1, got many",
        ),
        (
            ["pretrain", "x", "--lr", "-1"],
            "selfsight pretrain: --lr: expected a number ≥ 0, got -1",
        ),
        (
            ["pretrain", "x", "--lr", "nan"],
            "selfsight pretrain: --lr: expected a number ≥ 0, got nan",
        ),
        (["pretrain", "x", "--out"], "selfsight pretrain: --out: expected one argument"),
        (
            ["pretrain", "x", "y"],
            "selfsight pretrain: unexpected argument y; see selfsight pretrain --help",
        ),
        (
            ["pretrain", "x", "--epochs", "3", "--time", "2h"],
            "selfsight pretrain: --time: not allowed with --epochs",
        ),
        (["pretrain"], "selfsight pretrain: missing DATA; see selfsight pretrain --help"),
        (
            ["pretrain", "--out", "run", "--pretrained", "photos"],
            "selfsight pretrain: missing DATA (--pretrained took photos; write DATA before it); "
            "see selfsight pretrain --help",
        ),
        (
            ["pretrain", "photos"],
            "selfsight pretrain: missing --out, the run's folder; see selfsight pretrain --help",
        ),
        (
            ["pretrain", "photos", "--method.temperature"],
            "selfsight pretrain: --method.temperature: expected a value",
        ),
        (
            [*PRETRAIN, "--method.temprature", "0.2"],
            "selfsight pretrain: unknown option --method.temprature for simclr; "
            "did you mean temperature?",
        ),
        (
            [*PRETRAIN, "--method.temperature=hot"],
            "selfsight pretrain: --method.temperature: expected a number, above 0, got hot",
        ),
        (
            [*PRETRAIN, "--method", "simcrl"],
            "selfsight pretrain: unknown method simcrl; did you mean simclr?",
        ),
        (["embed", "run", "photos", "--out", "x.csv"], None),
        (["resume"], "selfsight resume: missing DIR; see selfsight resume --help"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], line: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert line is None or err == f"{line}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("no"), 2),
        (errors.DataError("no"), 2),
        (errors.Diverged("no"), 3),
        (errors.Locked("no"), 73),
        (errors.StorageError("no"), 74),
        (errors.CheckpointError("no"), 74),
        (errors.Stopped("no", 75), 75),
        (errors.Stopped("no", 143), 143),
    ],
)
def test_an_error_is_one_line_and_its_code(
    error: errors.Error,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fails_with(error, monkeypatch) == code
    assert capsys.readouterr() == ("", "selfsight pretrain: no\n")


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def pretrain(data: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(selfsight, "pretrain", pretrain)
    return main(PRETRAIN)


def test_every_error_class_is_covered() -> None:
    listed = {getattr(errors, name) for name in errors.__all__ if name != "suggestion"}
    assert {error.__name__ for error in listed} == {
        *("Error", "ConfigError", "DataError", "Diverged", "Locked", "Stopped"),
        *("StorageError", "CheckpointError"),
    }


def test_a_message_stays_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(errors.DataError("a\nb\x1b[2J\udcff é.jpg"), monkeypatch) == 2
    assert capsys.readouterr().err == "selfsight pretrain: a\\nb\\x1b[2J\\udcff é.jpg\n"


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == "selfsight pretrain: interrupted\n"


def test_a_file_error_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl")
    assert fails_with(full, monkeypatch) == 74
    expected = "selfsight pretrain: No space left on device: runs/a/metrics.jsonl\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("error", [ValueError("odd"), OSError("no number"), AssertionError()])
def test_a_bug_shows_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(error, monkeypatch) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith(
        "selfsight pretrain: this is a bug in selfsight; please report it with the lines above\n"
    )


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = interpreter("--help", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = interpreter("--help", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (74, "selfsight: No space left on device\n")


def test_only_what_was_given_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[dict[str, object]] = []

    def pretrain(data: object, **settings: object) -> object:
        seen.append({"data": data, **settings})
        return SimpleNamespace(path=Path("run"), config={"a": 1}, verdict={})

    monkeypatch.setattr(selfsight, "pretrain", pretrain)
    assert main(PRETRAIN) == 0
    file = tmp_path / "run.json"
    file.write_text('{"epochs": 5, "weight_decay": 0.1, "method.dim": 64, "pretrained": true}')
    flags = ["--time", "2h", "--lr", "1e-3", "--method.temperature", "0.2", "--json"]
    assert main([*PRETRAIN, "--config", str(file), "--workers", "3", "--labels", *flags]) == 0
    assert seen == [
        {"data": "photos", "out": "run"},
        {
            **{"data": "photos", "out": "run", "time": "2h", "lr": 1e-3},
            **{"weight_decay": 0.1, "pretrained": True, "threads": 3, "labels": True},
            "options": {"dim": 64, "temperature": 0.2},
        },
    ]
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == "run"
    assert json.loads(rest) == {"run": "run", "verdict": {}, "config": {"a": 1}}


def test_one_rank_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    done = SimpleNamespace(path=Path("run"), config={}, verdict={})
    monkeypatch.setattr(selfsight, "resume", lambda path, quiet: done)
    assert main(["resume", "run"]) == 0
    assert capsys.readouterr().out == ""
