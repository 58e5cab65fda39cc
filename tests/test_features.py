"""Features: what is saved is what is loaded, and every image is embedded once."""

import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from selfsight.data.base import Arrays, Source
from selfsight.data.decode import Undecodable
from selfsight.encoders.base import Encoder
from selfsight.errors import ConfigError, DataError, StorageError
from selfsight.extraction import extract, pixels
from selfsight.features import Features

ODD = ("a.jpg", "été/ü\n\t'\"<img>.png", os.fsdecode(b"caf\xe9.jpg"), "\ud83d", "😀" * 60)


def features(label: bool = True, n: int = 5, d: int = 3) -> Features:
    embedding = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    return Features(
        embedding,
        np.arange(n) % 3 if label else None,
        ODD[:n],
        ("cat", os.fsdecode(b"d\xf6g"), "absent", "owl") if label else (),
    )


def equal(a: Features, b: Features) -> bool:
    same = (a.label is None) == (b.label is None)
    if a.label is not None and b.label is not None:
        same = np.array_equal(a.label, b.label)
    return (
        same
        and np.array_equal(a.embedding, b.embedding, equal_nan=True)
        and (a.path, a.classes) == (b.path, b.classes)
    )


class Mean(Encoder):
    """The mean of each channel, through a module that knows its mode."""

    name, dim, token_dim, size, multiple, maskable = "mean", 3, 3, 8, 1, False
    mean, std, crop_pct = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1.0

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(3, 3)
        nn.init.eye_(self.scale.weight)
        self.drop = nn.Dropout(0.5)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(len(x))
        return self.drop(self.scale(x.mean(dim=(2, 3)))) - self.scale.bias


def images(n: int = 10, side: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, side, side, 3), np.uint8)


class TestParts:
    def test_a_subset_keeps_what_belongs_together(self) -> None:
        part = features().subset(np.array([3, 1]))
        assert np.array_equal(part.embedding, features().embedding[[3, 1]])
        assert part.label is not None
        assert part.label.tolist() == [0, 1]
        assert part.path == (ODD[3], ODD[1])
        assert part.classes == features().classes
        assert features(label=False).subset(np.array([0])).label is None

    def test_a_split_takes_a_fifth_of_every_class(self) -> None:
        label = np.repeat([0, 1, 3], [20, 10, 1])
        whole = Features(np.arange(31.0)[:, None], label)
        train, test = whole.split()
        assert train.label is not None
        assert test.label is not None
        assert np.bincount(test.label).tolist() == [4, 2]
        assert np.bincount(train.label).tolist() == [16, 8, 0, 1]
        both = np.concatenate([train.embedding, test.embedding])[:, 0]
        assert np.array_equal(np.sort(both), np.arange(31))
        assert equal(test, whole.split()[1])
        assert not equal(test, whole.split(seed=1)[1])

    def test_what_cannot_be_split(self) -> None:
        with pytest.raises(DataError, match="features without labels"):
            features(label=False).split()
        with pytest.raises(DataError, match="no class has two embeddings"):
            Features(np.eye(2), np.arange(2)).split()


class TestFile:
    @pytest.mark.parametrize("ending", ["npz", "parquet"])
    @pytest.mark.parametrize("label", [True, False])
    def test_round_trip(self, tmp_path: Path, ending: str, label: bool) -> None:
        saved = features(label)
        saved.embedding[1, 1] = np.nan
        saved.save(tmp_path / f"f.{ending}")
        loaded = Features.load(tmp_path / f"f.{ending}")
        assert equal(loaded, saved)
        assert loaded.embedding.flags.writeable
        assert loaded.label is None or loaded.label.flags.writeable
        assert [p.name for p in tmp_path.iterdir()] == [f"f.{ending}"]

    @pytest.mark.parametrize("ending", ["npz", "parquet"])
    def test_empty_round_trip(self, tmp_path: Path, ending: str) -> None:
        saved = Features(np.empty((0, 4), np.float32))
        saved.save(tmp_path / f"f.{ending}")
        assert Features.load(tmp_path / f"f.{ending}").embedding.shape == (0, 4)

    def test_parquet_is_for_others_to_read(self, tmp_path: Path) -> None:
        plain = Features(np.eye(3, 2), np.array([1, 0, 1]), ("a", "b", "c"), ("x", "y"))
        plain.save(tmp_path / "f.parquet")
        table = pq.read_table(tmp_path / "f.parquet")
        assert table.column_names == ["path", "label", "class", "embedding"]
        assert table["path"].to_pylist() == ["a", "b", "c"]
        assert table["class"].to_pylist() == ["y", "x", "y"]
        assert table["embedding"].type.list_size == 2

    @pytest.mark.parametrize("ending", ["npz", "parquet"])
    def test_every_kind_of_damage_is_one_line(self, tmp_path: Path, ending: str) -> None:
        file = tmp_path / f"f.{ending}"
        features().save(file)
        whole = file.read_bytes()
        draw = np.random.default_rng(0)
        cut = [whole[:k] for k in (0, 1, 10, len(whole) // 2, len(whole) - 1)]
        flipped = []
        for at in draw.integers(len(whole), size=60):
            data = bytearray(whole)
            data[at] ^= 0xFF
            flipped.append(bytes(data))
        refusals: list[str] = []
        for data in [*cut, b"not a feature file", *flipped]:
            file.write_bytes(data)
            refusals += [self.refusal(file) or ""]
        assert all(refusals[: len(cut) + 1])
        assert sum(map(bool, refusals)) > 20  # some bits of a header mean nothing
        assert not any("\n" in refusal for refusal in refusals)

    def refusal(self, file: Path) -> str | None:
        try:
            Features.load(file)
        except StorageError as error:
            return str(error)
        return None

    def test_foreign_files(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "other.npz", weights=np.eye(3))
        np.savez(tmp_path / "object.npz", format=np.array([{}], dtype=object))
        pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
        (tmp_path / "array.npz").write_bytes(b"")
        with open(tmp_path / "array.npz", "wb") as stream:
            np.save(stream, np.eye(2))
        for name in ("other.npz", "object.npz", "other.parquet", "array.npz"):
            with pytest.raises(StorageError, match="not a selfsight feature file"):
                Features.load(tmp_path / name)

    @pytest.mark.parametrize("names", [("embedding", "label"), ("features", "labels"), ("x", "y")])
    def test_archives_of_others(self, tmp_path: Path, names: tuple[str, str]) -> None:
        x, y = np.arange(6).reshape(3, 2), np.array([1, 0, 1], np.int16)
        np.savez_compressed(tmp_path / "f.npz", **{names[0]: x, names[1]: y, "more": x})
        found = Features.load(tmp_path / "f.npz")
        assert np.array_equal(found.embedding, x)
        assert np.array_equal(found.label, y)
        assert found.path == ("0", "1", "2")
        np.savez(tmp_path / "f.npz", **{names[0]: x})
        assert Features.load(tmp_path / "f.npz").label is None

    @pytest.mark.parametrize(
        ("arrays", "reason"),
        [
            ({"a": np.eye(2)}, "one array is called embedding, features or x"),
            ({"x": np.eye(2), "features": np.eye(2)}, "one array is called embedding, features"),
            ({"x": np.eye(2), "y": np.arange(2), "label": np.arange(2)}, "called label, labels"),
            ({"x": np.eye(2), "y": np.array([0.5, 1])}, "labels are whole numbers, not float64"),
            ({"x": np.eye(2), "y": np.arange(3)}, "2 embeddings need as many paths and labels"),
            ({"x": np.array(["a", "b"])}, "embeddings are numbers, not <U1"),
            ({"x": np.eye(2, dtype=complex)}, "embeddings are numbers, not complex128"),
            ({"x": np.zeros((2, 4, 4, 3))}, r"an embedding is \(N, D\) with D ≥ 1"),
            ({"x": np.array([None])}, "allow_pickle=False"),
        ],
    )
    def test_archives_without_embeddings(
        self, tmp_path: Path, arrays: dict[str, np.ndarray], reason: str
    ) -> None:
        np.savez(tmp_path / "f.npz", **arrays)
        with pytest.raises(StorageError, match=f"not a selfsight feature file: .*{reason}"):
            Features.load(tmp_path / "f.npz")

    def test_names_and_places(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"features are \.npz or \.parquet, got f\.csv"):
            features().save(tmp_path / "f.csv")
        with pytest.raises(ConfigError, match="rename"):
            Features.load(tmp_path / "f.pkl")
        with pytest.raises(StorageError, match="No such file"):
            Features.load(tmp_path / "absent.npz")
        with pytest.raises(StorageError, match="cannot write"):
            features().save(tmp_path / "nowhere" / "f.npz")

    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "f.npz"
        features().save(file)
        old = file.read_bytes()

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            features(False).save(file)
        assert file.read_bytes() == old
        assert list(tmp_path.iterdir()) == [file]


class TestShape:
    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"shape \(3,\)"):
            Features(np.zeros(3))
        with pytest.raises(DataError, match="3 embeddings need as many"):
            Features(np.zeros((3, 2)), path=("a",))
        with pytest.raises(DataError, match="2 labels"):
            Features(np.zeros((3, 2)), np.zeros(2))
        with pytest.raises(DataError, match="do not fit 2 class names"):
            Features(np.zeros((3, 2)), np.array([0, 1, 2]), classes=("a", "b"))

    def test_types_and_names_are_filled_in(self) -> None:
        made = Features(np.zeros((2, 3), np.float64), np.array([1, 0], np.int32))
        assert (made.embedding.dtype, made.path) == (np.float32, ("0", "1"))
        assert made.label is not None
        assert made.label.dtype == np.int64
        assert (len(made), made.dim) == (2, 3)


class TestExtract:
    def test_each_image_once_in_order(self) -> None:
        x = images()
        source = Arrays("set", x, np.arange(10) % 2, ("a", "b"))
        told: list[tuple[int, int]] = []
        encoder = Mean()
        found = extract(
            encoder, source, size=8, batch=4, threads=3, progress=lambda *a: told.append(a)
        )
        expected = (x.mean(axis=(1, 2)) / 255 - encoder.mean) / encoder.std
        np.testing.assert_allclose(found.embedding, expected, atol=1e-5)
        assert found.path == tuple(f"set[{i}]" for i in range(10))
        assert found.classes == ("a", "b")
        assert encoder.seen == [4, 4, 2]
        assert told == [(4, 10), (8, 10), (10, 10)]

    def test_modes_are_given_back_one_by_one(self) -> None:
        encoder = Mean().train()
        encoder.drop.eval()
        extract(encoder, Arrays("set", images()), size=8)
        assert encoder.training
        assert encoder.scale.training
        assert not encoder.drop.training

    def test_modes_are_given_back_after_an_error(self) -> None:
        class Failing(Mean):
            def forward(self, x: Tensor) -> Tensor:
                raise RuntimeError("no")

        encoder = Failing().train()
        with pytest.raises(RuntimeError, match="no"):
            extract(encoder, Arrays("set", images()), size=8)
        assert encoder.training
        assert threading.active_count() < 20

    def test_the_encoder_says_how_much_is_cropped(self) -> None:
        x = np.zeros((1, 128, 128, 3), np.uint8)
        x[:, 32:96, 32:96] = 255
        encoder = Mean()
        white = (1 - np.array(encoder.mean)) / encoder.std
        whole = extract(encoder, Arrays("set", x), size=128).embedding[0]
        assert (whole < white - 0.5).all()
        encoder.crop_pct = 0.5
        cropped = extract(encoder, Arrays("set", x), size=128).embedding[0]
        np.testing.assert_allclose(cropped, white, atol=1e-4)

    def test_bf16_gives_float32_near_the_same(self) -> None:
        source, encoder = Arrays("set", images()), Mean()
        exact = extract(encoder, source, size=8)
        half = extract(encoder, source, size=8, precision="bf16")
        assert half.embedding.dtype == np.float32
        assert not np.array_equal(half.embedding, exact.embedding)
        np.testing.assert_allclose(half.embedding, exact.embedding, atol=0.03)

    def test_is_deterministic(self) -> None:
        source, encoder = Arrays("set", images()), Mean()
        runs = [extract(encoder, source, size=8, batch=3, threads=t) for t in (1, 2, 4)]
        assert all(np.array_equal(runs[0].embedding, run.embedding) for run in runs)

    def test_refusals(self) -> None:
        source = Arrays("set", images())
        with pytest.raises(ConfigError, match="did you mean fp32"):
            extract(Mean(), source, size=8, precision="fp3")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="batch ≥ 1"):
            extract(Mean(), source, size=8, batch=0)
        with pytest.raises(DataError, match="nothing to embed"):
            extract(Mean(), Arrays("set", images(0)), size=8)

    def test_a_file_that_went_bad_is_named(self) -> None:
        class Gone(Arrays):
            def read(self, index: int, least: int = 0) -> np.ndarray:
                if index == 7:
                    raise Undecodable("an empty file")
                return super().read(index)

        source: Source = Gone("set", images())
        with pytest.raises(DataError, match=r"cannot read set\[7\]: an empty file"):
            extract(Mean(), source, size=8, batch=4)


def test_pixels_are_the_image() -> None:
    x = images(6, 4)
    found = pixels(Arrays("set", x, np.zeros(6, np.int64), ("a",)), size=4, batch=4)
    expected = x.transpose(0, 3, 1, 2).reshape(6, -1) / 255
    np.testing.assert_allclose(found.embedding, expected, atol=1e-5)
    assert pixels(Arrays("set", images(2, 9)), size=4).dim == 48
