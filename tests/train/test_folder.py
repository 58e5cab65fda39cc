"""Who may write in a run's folder, and what else is left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from processes import codes, finish, images, lines, running, wait_for

import selfsight
from selfsight.errors import ConfigError, DataError, Locked, StorageError
from selfsight.train.folder import RunFolder

SMALL = ("--encoder", "test_resnet", "--batch", "8", "--method.dim", "8", "--precision", "fp32")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_or_empty_folder_is_taken(tmp_path, resume):
    for path in (tmp_path, tmp_path / "new" / "deep"):
        RunFolder(path).claim(resume=resume)
        assert path.is_dir()


@pytest.mark.parametrize("debris", ["lock", "run.tmp"])
@pytest.mark.parametrize("resume", [False, True])
def test_what_a_run_leaves_that_died_at_its_start_is_no_obstacle(tmp_path, debris, resume):
    (tmp_path / debris).write_text("{")
    RunFolder(tmp_path).claim(resume=resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty; choose a new folder"):
        RunFolder(tmp_path).claim(resume=resume)
    with pytest.raises(ConfigError):
        selfsight.pretrain(images(), out=tmp_path, resume=resume, quiet=True)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_run_is_refused_unless_it_is_to_be_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write({"config": {}})
    with pytest.raises(ConfigError, match="already holds a run; add --resume to continue it"):
        folder.claim(resume=False)
    folder.claim(resume=True)
    assert folder.read() == {"config": {}}
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StorageError, match="cannot use --out"):
            RunFolder(path).claim(resume=False)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", "\0"])
def test_a_damaged_record_is_told(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.record_path.write_text(content)
    with pytest.raises(StorageError, match=r"run\.json is "):
        folder.read()
    with pytest.raises(StorageError, match=r"run\.json is "):
        selfsight.resume(tmp_path)


def test_no_record_is_told(tmp_path):
    with pytest.raises(StorageError, match="holds no run: No such file"):
        RunFolder(tmp_path).read()


def test_the_lock_is_held_once_and_given_back(tmp_path):
    folder, other = RunFolder(tmp_path), RunFolder(tmp_path)
    folder.write({"config": {}})
    with folder.lock():
        with pytest.raises(Locked, match=f"in use by process {os.getpid()}; wait for it"):
            with other.lock():
                pass
        assert Locked("").exit_code == 73
    with other.lock():
        pass


def test_a_run_that_is_refused_before_it_starts_leaves_no_folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "new")
    folder.claim(resume=False)
    with pytest.raises(ConfigError), folder.lock():
        raise ConfigError("no such encoder")
    assert not folder.path.exists()


def test_a_lock_in_a_folder_that_vanished_is_an_error_of_storage(tmp_path):
    with pytest.raises(StorageError, match="cannot write in"), RunFolder(tmp_path / "x").lock():
        pass


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root")
def test_a_folder_that_is_read_only_is_an_error_of_storage(public):
    """As another user, since root may write anywhere."""
    code = (
        "import sys; from selfsight.errors import StorageError\n"
        "from selfsight.train.folder import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "for path in (sys.argv[1], sys.argv[1] + '/new'):\n"
        "    try:\n"
        "        folder = RunFolder(path); folder.claim(resume=False)\n"
        "        with folder.lock(): print('locked')\n"
        "    except StorageError as error: print(error.exit_code, error)\n"
    )
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = subprocess.run(
        [*user, sys.executable, "-c", code, public], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == f"74 cannot write in {public}: Permission denied"
    assert second == f"74 cannot use --out {public}/new: Permission denied"


def test_a_second_process_is_turned_away_until_the_first_is_dead(tmp_path, photos):
    out, log = tmp_path / "run", tmp_path / "log"
    words = ("pretrain", photos, *SMALL, "--epochs", "500", "--save-every", "50", "--out", out)
    with running(log, *words) as (first,):
        wait_for(lambda: lines(out / "metrics.jsonl") > 2, [first])
        os.kill(first.pid, signal.SIGSTOP)
        before = contents(out)
        assert finish(tmp_path / "second", *words) == [2]
        assert finish(tmp_path / "second", *words, "--resume") == [73]
        assert finish(tmp_path / "second", "resume", out) == [73]
        assert contents(out) == before
        assert f"in use by process {first.pid}" in (tmp_path / "second").read_text()
        os.kill(first.pid, signal.SIGKILL)
        assert codes([first]) == [-9]
    with running(tmp_path / "third", *words, "--resume") as (third,):
        wait_for(lambda: lines(out / "metrics.jsonl") > 2, [third])
        assert third.is_alive()
        assert json.loads((out / "run.json").read_bytes())["config"]["epochs"] == 500


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_leave_no_run(tmp_path, count):
    with pytest.raises((DataError, ConfigError)):
        selfsight.pretrain(np.zeros((count, 8, 8, 3), np.uint8), out=tmp_path / "r", quiet=True)
    assert not (tmp_path / "r" / "run.json").exists()
