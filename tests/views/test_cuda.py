"""The GPU's kernels against the reference: interpreted, compiled without a GPU, and on one."""

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from triton_cases import CASES, CHAINS

SCRIPT = Path(__file__).parent / "triton_cases.py"
STEP = 1 / 255

# One flipped pixel moves these by more than a step.
DISCONTINUOUS = {"solarize", "equalize", "hue", "blur, solarize", "blur, equalize"}
DISCONTINUOUS |= {"equalize, sobel", "orders", "tiny", *CHAINS}

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the script prints, run once for each set of arguments."""

    @functools.cache
    def answer(*arguments: str) -> Any:
        environment = {name: v for name, v in os.environ.items() if not name.startswith("TRITON")}
        environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
        environment["OMP_NUM_THREADS"] = "1"
        if arguments[-1] == "interpreted":
            environment["TRITON_INTERPRET"] = "1"
        process = subprocess.run(
            [sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return answer


@needs_triton
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("where", ["interpreted", pytest.param("on the GPU", marks=needs_gpu)])
def test_case(name: str, where: str, run: Any) -> None:
    largest, share = run("render", where)[name]
    if name in DISCONTINUOUS:
        assert share <= 1e-3
    else:
        # Interpreted arithmetic is the reference's but for the order of sums.
        assert largest < (1e-5 if where == "interpreted" else STEP)


@needs_triton
def test_the_noise_is_the_references(run: Any) -> None:
    assert run("render", "interpreted")["draws"][0] < 2e-6


@needs_triton
def test_kernels_compile_for_real_hardware(run: Any) -> None:
    found = run("compile")
    assert set(found) == {"begin", "finish to float32", "finish to bfloat16", "finish to lab"}
    for needs in found.values():
        assert needs["shared"] <= 16 * 1024
        # At least two programs of 512 threads fit beside each other; hardly anything is spilled.
        assert needs["reg"] <= 64
        assert needs["stack"] <= 32
        assert needs["local"] == 0


def test_without_triton_the_import_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "selfsight.views.cuda", raising=False)
    with pytest.raises(ImportError, match="triton"):
        importlib.import_module("selfsight.views.cuda")
