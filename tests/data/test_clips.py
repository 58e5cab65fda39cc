"""Folders of frames and masks, in whichever of the known layouts."""

from pathlib import Path

import pytest
from PIL import Image

from selfsight.data.clips import open_clips
from selfsight.data.masks import Paired
from selfsight.errors import DataError

LAYOUT = ("frames", "masks")
DAVIS = ("JPEGImages/480p", "Annotations/480p")


def write(
    root: Path,
    clip: str,
    names: list[str],
    layout: tuple[str, str] = LAYOUT,
    size: tuple[int, int] = (8, 6),
) -> Path:
    """The number of a frame is its grey and its mask's value."""
    for place, suffix in zip(layout, ("jpg", "png"), strict=True):
        folder = root / place / clip
        folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names, 1):
            Image.new("L", size, 20 * number if suffix == "jpg" else number).save(
                folder / f"{name}.{suffix}"
            )
    return root


def values(clip: Paired) -> list[int]:
    assert [int(clip.read(i)[0].mean()) // 20 for i in range(len(clip))] == [
        int(clip.read(i)[1].mean()) for i in range(len(clip))
    ]
    return [int(clip.read(i)[1][0, 0]) for i in range(len(clip))]


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write(tmp_path, "b", ["f1", "f2", "f10", "f9"])
    write(tmp_path, "a", ["00000", "00001", "00002"])
    clips = open_clips(tmp_path)
    assert [clip.name for clip in clips] == ["a", "b"]
    assert values(clips[0]) == [1, 2, 3]
    assert values(clips[1]) == [1, 2, 4, 3]
    assert clips[0].read(0)[0].shape == (6, 8, 3)
    assert clips[0].mark != clips[1].mark


def test_davis(tmp_path: Path) -> None:
    for clip in ("bear", "camel", "cows"):
        write(tmp_path, clip, ["00000", "00001", "00002"], DAVIS)
    assert [clip.name for clip in open_clips(tmp_path)] == ["bear", "camel", "cows"]
    folder = tmp_path / "ImageSets" / "2016"
    folder.mkdir(parents=True)
    (folder / "val.txt").write_text(
        "/JPEGImages/480p/cows/00000.jpg /Annotations/480p/cows/00000.png \n\n"
    )
    assert [clip.name for clip in open_clips(tmp_path)] == ["cows"]
    folder = tmp_path / "ImageSets" / "2017"
    folder.mkdir()
    (folder / "val.txt").write_text("camel\nbear\n")
    assert [clip.name for clip in open_clips(tmp_path)] == ["bear", "camel"]
    (folder / "val.txt").write_text("dog\n")
    with pytest.raises(DataError, match="none of the clips that its ImageSets name"):
        open_clips(tmp_path)


def refused(root: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        open_clips(root)
    assert "\n" not in str(caught.value)


def test_what_is_no_clip(tmp_path: Path) -> None:
    refused(tmp_path / "none", "is not a folder; give one that holds frames/ and masks/")
    refused(tmp_path, "holds no clips; it needs frames/ and masks/, or JPEGImages")

    root = write(tmp_path / "short", "a", ["0", "1"])
    refused(root, "frames/a has 2 frames; a clip needs 3")

    root = write(tmp_path / "flat", "", ["0", "1", "2"])
    refused(root, r"frames/0\.jpg is of no clip; put frames in one folder per clip")

    root = write(tmp_path / "missing", "a", ["0", "1", "2"])
    (root / "masks" / "a" / "1.png").unlink()
    refused(root, r"frames/a/1\.jpg has no mask: there is no .*masks/a/1\.png")

    root = write(tmp_path / "sizes", "a", ["0", "1", "2"])
    write(root, "a", ["3"], size=(4, 4))
    refused(root, "frames/a has frames or masks of different sizes")
