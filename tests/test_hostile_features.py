"""Files of features and of results that are damaged on purpose are refused in one line."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfsight.errors import DataError, StorageError
from selfsight.evaluate import stored
from selfsight.features import Features


def refused(file: Path, words: str) -> None:
    with pytest.raises(StorageError, match=words) as caught:
        Features.load(file)
    assert "\n" not in str(caught.value)


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", b"no array")
    refused(tmp_path / "a.npz", "damaged or not a selfsight feature file")


def test_an_archive_that_unpacks_to_far_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsight.features._MAX_UNASKED", 1 << 16)
    content = io.BytesIO()
    np.save(content, np.zeros((1 << 12, 1 << 8), np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content.getvalue())
    refused(tmp_path / "a.npz", "unpack to far more than its size")


def test_labels_far_too_large() -> None:
    with pytest.raises(DataError, match="number them from 0"):
        Features(np.ones((2, 2)), np.array([0, 1 << 40]))


def test_numbers_too_large_for_features_are_not_finite() -> None:
    assert np.isinf(Features(np.full((2, 2), 1e300)).embedding).all()


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("label", pa.array([1.5, 2.5])),
        ("label", pa.array(["1", "2"])),
        ("label", pa.array([1, None])),
        ("label", pa.array([[1], [2]])),
        ("path", pa.array([{"a": 1}, {"a": 2}])),
    ],
)
def test_columns_of_other_types(tmp_path: Path, name: str, column: Any) -> None:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float32)), 4)
    columns = {"path": pa.array(["a", "b"]), "label": pa.array([0, 1]), "embedding": rows}
    mark = {"format": "selfsight.features.1", "labelled": True, "classes": []}
    for given in (columns, {**columns, name: column}):
        table = pa.table(given).replace_schema_metadata({"selfsight": json.dumps(mark)})
        pq.write_table(table, tmp_path / "a.parquet")
        if given is columns:
            assert len(Features.load(tmp_path / "a.parquet")) == 2
    refused(
        tmp_path / "a.parquet", "labels are whole|classes are names|labels .* do not fit|sequence"
    )


@pytest.mark.parametrize("field", ["options", "details"])
def test_results_that_are_nested_deeply(tmp_path: Path, field: str) -> None:
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    score: dict[str, Any] = {"name": "knn", "protocol": "knn", "metric": "accuracy", "images": ""}
    score |= numbers | {"options": {}, "details": {}}
    for _ in range(500):
        score[field] = {"a": score[field]}
    whole = {"format": "selfsight.evaluation.1", "data": "d", "size": None, "scores": [score]}
    (tmp_path / "a.json").write_text(json.dumps(whole))
    with pytest.raises(StorageError, match="nested too deeply"):
        stored.read(tmp_path / "a.json")
