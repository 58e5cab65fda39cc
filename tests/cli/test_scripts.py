"""The scripts a fresh clone is used with; a fake Python stands in for the slow parts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]

# Records what it is asked; makes and fills a venv the way the real one does, with itself.
PYTHON = """\
#!/usr/bin/env bash
echo "$PWD: python $*" >>"$LOG"
case "$*" in
    --version) echo "Python 3.9.1" ;;
    *version_info*) exit "${OLD:-0}" ;;
    *ensurepip*) exit "${BARE:-0}" ;;
    "-m venv .venv")
        mkdir -p .venv/bin
        for name in python pip selfsight; do cp "$0" ".venv/bin/$name"; done ;;
    *"pip install"*) exit "${BROKEN:-0}" ;;
    "-m pytest"*) exit "${TESTS:-0}" ;;
    "-m ruff check"*) exit "${LINT:-0}" ;;
esac
"""


class Clone:
    """A copy of the scripts with a fake python3, and what they asked of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        for script in SCRIPTS:
            copy = self.root / script.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(script, copy)
        self.project = self.root / "pyproject.toml"
        self.project.write_text("one")
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "python3").write_text(PYTHON)
        (self.bin / "python3").chmod(0o755)

    def run(self, script: str, *words: str, **variables: str) -> tuple[int, str, list[str]]:
        """Exit code, messages, and the questions to any Python since the last call."""
        self.log.write_text("")
        path = f"{self.bin}:{os.environ['PATH']}"
        done = subprocess.run(
            [str(self.root / script), *words],
            cwd="/",
            env={"PATH": path, "LOG": str(self.log), "HOME": str(self.root), **variables},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr, self.log.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def installs(log: list[str]) -> list[str]:
    return [line.rpartition(" ")[2] for line in log if "pip install" in line]


def test_scripts_are_executable_and_strict() -> None:
    assert {path.name for path in SCRIPTS} == {"check", "demo", "install", "run", "test"}
    for script in SCRIPTS:
        text = script.read_text()
        assert os.access(script, os.X_OK)
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -uo pipefail\n" in text or "\nset -euo pipefail\n" in text
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_it_installs_once(clone: Clone) -> None:
    code, said, log = clone.run("scripts/test", "-k", "x")
    assert (code, installs(log)) == (0, [".[dev]"])
    assert "installing into .venv (once, about 5 GB with PyTorch)…" in said
    assert log[-1] == f"{clone.root}: python -m pytest -n 2 --dist loadfile -k x"
    code, said, log = clone.run("scripts/test")
    assert (code, installs(log), said) == (0, [], "running the tests\n")
    # What development needs includes what the demo needs, not the other way round.
    assert installs(clone.run("scripts/demo")[2]) == []
    clone.project.write_text("two")
    assert installs(clone.run("scripts/demo")[2]) == ["."]
    assert installs(clone.run("scripts/check")[2]) == [".[dev]"]


def test_a_moved_clone_installs_again(clone: Clone) -> None:
    assert clone.run("scripts/demo")[0] == 0
    clone.root = clone.root.rename(clone.root.with_name("moved"))
    assert installs(clone.run("scripts/demo")[2]) == ["."]


def test_the_demo_runs_where_the_user_stands(clone: Clone) -> None:
    code, _, log = clone.run("scripts/demo", "--out", "my run")
    assert code == 0
    assert log[-1] == "/: python demo --out my run"


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"OLD": "1"}, "Python 3.9.1 is too old; install Python 3.11 or newer, or set PYTHON"),
        (
            {"BARE": "1"},
            "python3 has no venv; install it (Debian, Ubuntu: apt install python3-venv)",
        ),
        ({"PYTHON": "python9"}, "python9 not found; install Python 3.11 or newer"),
    ],
)
def test_an_unfit_python_is_one_line(clone: Clone, variables: dict[str, str], line: str) -> None:
    code, said, _ = clone.run("scripts/demo", **variables)
    assert (code, said) == (1, f"scripts/install: {line}\n")
    assert not (clone.root / ".venv").exists()


def test_a_failed_installation_is_tried_again(clone: Clone) -> None:
    code, said, log = clone.run("scripts/test", BROKEN="1")
    assert code == 1
    assert said.endswith("run the same command again to continue\n")
    assert not any("-m pytest" in line for line in log)
    assert installs(clone.run("scripts/test")[2]) == [".[dev]"]


@pytest.mark.parametrize(
    ("variables", "code"),
    [({}, 0), ({"TESTS": "5"}, 5), ({"LINT": "3"}, 3), ({"TESTS": "5", "LINT": "3"}, 5)],
)
def test_ci_runs_both_and_keeps_the_first_failure(
    clone: Clone, variables: dict[str, str], code: int
) -> None:
    found, _, log = clone.run(".ci/run", **variables)
    assert found == code
    asked = [line.partition("python -m ")[2] for line in log]
    assert "pytest -n 2 --dist loadfile" in asked
    assert "ruff check ." in asked
    assert ("mypy" in asked) == ("LINT" not in variables)
