"""Folders of small images, each unlike the others."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Jpeg = Callable[[int], bytes]
Photos = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SELFSIGHT_CACHE", str(folder))
    monkeypatch.delenv("SELFSIGHT_DATA", raising=False)
    return folder


@pytest.fixture
def jpeg() -> Jpeg:
    def encode(number: int) -> bytes:
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (4, 5, 3), np.uint8)
        image = Image.fromarray(small).resize((20 + number % 7, 16 + number % 5))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        return out.getvalue()

    return encode


@pytest.fixture
def photos(tmp_path: Path, jpeg: Jpeg) -> Photos:
    """photos(n, folder="photos", classes=0): n JPEGs, dealt to sub-folders if asked."""

    def make(n: int, folder: str = "photos", classes: int = 0, first: int = 0) -> Path:
        root = tmp_path / folder
        for number in range(n):
            where = root / f"class{number % classes}" if classes else root
            where.mkdir(parents=True, exist_ok=True)
            (where / f"{number:04}.jpg").write_bytes(jpeg(first + number))
        return root

    return make
