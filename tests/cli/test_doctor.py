"""What the doctor says of speed, memory, decoding and compiled kernels."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from selfsight import bench, doctor, machine
from selfsight.bench import Probe
from selfsight.data import jpeg
from selfsight.views import compiled


def finding(name: str) -> doctor.Finding:
    (check,) = [c for c in doctor._CHECKS if c.__name__.strip("_").replace("_", " ") == name]
    return check()


def probing(gflops: float, busy: float, threads: int) -> Callable[..., Probe]:
    return lambda **asked: Probe(gflops, busy, threads)


@pytest.mark.parametrize(
    ("busy", "threads", "quota", "status", "advice"),
    [
        (1.97, 2, None, "ok", ""),
        (1.51, 2, None, "ok", ""),
        (1.49, 2, None, "warn", "another process takes the cores"),
        (5.9, 8, None, "warn", "another process takes the cores"),
        (6.1, 8, None, "ok", ""),
        (1.0, 2, 1.0, "warn", "a CPU quota of 1 cores: raise it, or set OMP_NUM_THREADS=1"),
        (2.4, 8, 2.5, "warn", "a CPU quota of 2.5 cores: raise it, or set OMP_NUM_THREADS=3"),
        (1.0, 2, 4.0, "warn", "another process takes the cores"),
        (0.4, 1, None, "ok", ""),
    ],
)
def test_speed(
    busy: float,
    threads: int,
    quota: float | None,
    status: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "probe", probing(80, busy, threads))
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine, "native_bf16", lambda device: threads == 2)
    found = finding("speed")
    assert found.status == status
    assert found.advice.startswith(advice)
    assert bool(found.advice) is bool(advice)
    assert found.value.startswith("80 GFLOP/s, 80 in bf16; 2 threads" if threads == 2 else
                                  "80 GFLOP/s; ")  # fmt: skip
    assert f"{busy:.2f} CPU seconds a second" in found.value


def test_the_speed_of_this_machine() -> None:
    found = finding("speed")
    assert found.status in ("ok", "warn")
    assert float(found.value.split()[0]) > 0


@pytest.mark.parametrize(
    ("libc", "switch", "kept", "says"),
    [
        ("glibc", "", True, "keeps freed pages for reuse (SELFSIGHT_KEEP_PAGES=0 turns it off)"),
        ("glibc", "0", False, "gives freed pages back: SELFSIGHT_KEEP_PAGES=0"),
        ("glibc", "", False, "does not let a run keep freed pages"),
        ("musl", "", False, "musl: left as it is"),
    ],
)
def test_malloc(
    libc: str, switch: str, kept: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: (libc, "2.36"))
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    monkeypatch.setattr(machine, "keep_pages", lambda: kept)
    monkeypatch.setenv("SELFSIGHT_KEEP_PAGES", switch)
    assert finding("malloc").value.endswith(says)


def test_malloc_asks_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSIGHT_KEEP_PAGES", "0")
    assert "for reuse" not in finding("malloc").value


def test_simplejpeg_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    found = finding("simplejpeg")
    assert (found.status, found.value[:22]) == ("ok", "absent: Pillow decodes")
    assert finding("numba").status == "fail"
    assert finding("numba").advice.startswith("pip install 'numba")


@pytest.mark.parametrize(("fast", "status"), [("simplejpeg 1.9.0", "ok"), ("", "warn")])
def test_simplejpeg(fast: str, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.9.0")
    monkeypatch.setattr(jpeg, "FAST", fast)
    assert finding("simplejpeg").status == status


def test_kernels_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path))
    found = finding("kernels")
    assert found.status == "ok"
    assert found.value == f"compiled once, kept in {compiled.kernels_folder()}"


def test_kernels_that_others_could_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path))
    folder = compiled.kernels_folder()
    assert folder is not None
    folder.chmod(0o770)
    found = finding("kernels")
    assert found.status == "warn"
    assert f"others can reach into {tmp_path / 'kernels'}" in found.value
    assert "SELFSIGHT_CACHE" in found.advice


def test_kernels_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "file" / "cache"))
    found = finding("kernels")
    assert found.status == "warn"
    assert found.value.endswith("file/cache: Not a directory")
