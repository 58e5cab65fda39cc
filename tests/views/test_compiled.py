"""Kernels are kept where nobody else can write, work without, and whoever calls them first."""

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import types
from numba.core.caching import IndexDataCacheFile
from numba.core.errors import NumbaError

from selfsight.views import compiled
from selfsight.views.compiled import Kernel, kernels_folder

SIGNATURE = types.void(types.float64[::1])


def three(x):
    x[:] = 3


def four(x):
    x[:] = 4


def five(x):
    x[:] = 5


def uncompilable(x):
    x[:] = x.no_such_thing


def works(function: Callable[..., None] = three, value: int = 3) -> Kernel:
    """A kernel as a new process would see it."""
    kernel, x = Kernel(SIGNATURE, function), np.zeros(4)
    kernel(x)
    assert x.tolist() == [value] * 4
    return kernel


def hits(kernel: Kernel) -> int:
    return sum(kernel._compiled.stats.cache_hits.values())


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.nb[ic]") if path.is_file())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_kernels_are_kept_in_a_private_folder(cache: Path) -> None:
    assert hits(works()) == 0
    folder = kernels_folder()
    assert folder is not None
    assert folder.is_relative_to(cache)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(kept(folder)) == 2
    assert hits(works()) == 1
    assert hits(works(four, 4)) == 0
    assert len(kept(folder)) == 4


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_the_folder_is_private_whatever_the_umask(umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = kernels_folder()
    finally:
        os.umask(before)
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702, 0o755, 0o777])
def test_a_folder_open_to_others_is_not_used(cache: Path, mode: int) -> None:
    works()
    folder = kernels_folder()
    assert folder is not None
    for path in kept(folder):
        path.write_bytes(b"somebody else's")
    folder.chmod(mode)
    assert kernels_folder() is None
    for _ in range(2):
        assert hits(works()) == 0
    assert {path.read_bytes() for path in kept(cache)} == {b"somebody else's"}


def test_somebody_elses_folder_is_neither_used_nor_touched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kernels_folder()
    assert folder is not None
    (folder / ".writable").unlink()
    precious = cache / "precious"
    precious.write_text("mine")
    (folder / ".writable").symlink_to(precious)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert kernels_folder() is None
    works()
    assert kept(cache) == []
    assert precious.read_text() == "mine"


def test_a_link_in_the_folders_place_is_not_followed(cache: Path) -> None:
    folder = kernels_folder()
    assert folder is not None
    elsewhere = folder.rename(cache / "elsewhere")
    (elsewhere / ".writable").unlink()
    folder.symlink_to(elsewhere)
    assert kernels_folder() is None
    works()
    assert list(elsewhere.iterdir()) == []


def test_kernels_work_where_nothing_can_be_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "file"))
    assert kernels_folder() is None
    assert hits(works()) == 0
    monkeypatch.setenv("SELFSIGHT_CACHE", "/proc/selfsight")
    assert kernels_folder() is None
    assert hits(works()) == 0


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_kernels_work_in_a_read_only_folder() -> None:
    folder = kernels_folder()
    assert folder is not None
    (folder / ".writable").unlink()
    folder.chmod(0o500)
    try:
        assert kernels_folder() is None
        assert hits(works()) == 0
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "noise", "a folder", "gone"])
def test_damaged_files_are_survived_and_replaced(suffix: str, damage: str) -> None:
    works()
    folder = kernels_folder()
    assert folder is not None
    (path,) = folder.rglob(f"*.{suffix}")
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        noise = np.random.default_rng(0).bytes(len(whole))
        path.write_bytes(
            {"empty": b"", "half": whole[: len(whole) // 2], "zeros": bytes(len(whole))}.get(
                damage, noise
            )
        )
    works()
    works()
    assert hits(works()) == 1
    assert not list(folder.rglob("*.tmp.*"))


def test_a_full_disk_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(IndexDataCacheFile, "_save_data", full)
        works()
    works()
    assert hits(works()) == 1


def test_another_source_or_numba_is_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "views"
    sources.mkdir()
    for path in Path(compiled.__file__).parent.glob("*.py"):
        (sources / path.name).write_bytes(path.read_bytes())
    folder = kernels_folder()
    monkeypatch.setattr(compiled, "__file__", str(sources / "compiled.py"))
    assert kernels_folder() == folder
    folders = {folder}
    for name in ("geometry.py", "photometry.py", "draw.py", "spec.py", "cpu.py"):
        with open(sources / name, "a", encoding="utf-8") as file:
            file.write("# changed\n")
        folders.add(kernels_folder())
    monkeypatch.setattr(numba, "__version__", "0.0")
    folders.add(kernels_folder())
    assert len(folders) == 7


@pytest.mark.parametrize("before", ["", "/nonexistent/chosen by the user"])
def test_numbas_settings_are_restored(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", before)
    works()
    assert before == numba.config.CACHE_DIR
    with pytest.raises(NumbaError):
        works(uncompilable)
    assert before == numba.config.CACHE_DIR


def test_two_threads_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    make = Kernel._made

    def counted(kernel: Kernel, cache: bool) -> Any:
        made.append(cache)
        return make(kernel, cache)

    monkeypatch.setattr(Kernel, "_made", counted)
    fresh, together = Kernel(SIGNATURE, three), threading.Barrier(4)

    def call(_: int) -> list[float]:
        x = np.zeros(2)
        together.wait()
        fresh(x)
        return x.tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == [[3.0, 3.0]] * 4
    assert made == [True]


def test_threads_that_compile_different_kernels_leave_numba_as_it_was(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    together = threading.Barrier(3)

    def call(job: tuple[Callable[..., None], int]) -> int:
        together.wait()
        works(*job)
        return job[1]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, [(three, 3), (four, 4), (five, 5)])) == [3, 4, 5]
    assert numba.config.CACHE_DIR == ""
    assert len(kept(cache)) == 6


def test_compiling_ahead_is_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, x = Kernel(SIGNATURE, three), np.zeros(1)
    kernel.compile()
    first = kernel._compiled
    kernel.compile()
    kernel(x)
    assert kernel._compiled is first
    assert x[0] == 3


FORK = """
import os
import numpy as np, torch
from selfsight.views import View, apply, cpu
cpu._TASK = 1e-9
images = np.random.default_rng(0).integers(0, 256, (8, 20, 24, 3), dtype=np.uint8)
view = View(size=16)
before = apply(images, view, threads=2)[0]
child = os.fork()
if child == 0:
    same = torch.equal(apply(images, view, threads=2)[0], before)
    os._exit(7 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert torch.equal(apply(images, view, threads=2)[0], before)
"""


def test_a_forked_process_paints_with_threads_of_its_own(session_cache: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        env={**os.environ, "SELFSIGHT_CACHE": session_cache},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def session_cache(_own_cache: None) -> str:
    """Where this run's other tests keep their kernels."""
    return os.environ["SELFSIGHT_CACHE"]
