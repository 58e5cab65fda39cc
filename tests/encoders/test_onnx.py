"""An ONNX graph gives the embeddings that it was exported for, and refuses the rest in one line."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsight.data.base import Arrays
from selfsight.encoders.onnx import METADATA, OnnxEncoder
from selfsight.errors import ConfigError, StorageError
from selfsight.evaluate import Sight
from selfsight.extraction import extract

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT = onnx.TensorProto.FLOAT
ANY = ("n", 3, "h", "w")
WEIGHT = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def graph(
    path: Path,
    *nodes: Any,
    takes: Any = ANY,
    gives: Any = ("n", 5),
    kind: int = FLOAT,
    outputs: tuple[str, ...] = ("y",),
    weights: tuple[Any, ...] = (),
    said: Any = None,
) -> Path:
    helper = onnx.helper
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, takes)],
        [helper.make_tensor_value_info(name, kind, gives) for name in outputs],
        list(weights),
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if said is not None:
        text = said if isinstance(said, str) else json.dumps(said)
        helper.set_model_props(model, {METADATA: text})
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, takes: str, gives: str, **more: Any) -> Any:
    return onnx.helper.make_node(kind, takes.split(), gives.split(), **more)


def linear(path: Path, **more: Any) -> Path:
    """The mean of each channel, projected to five numbers."""
    nodes = [
        node("GlobalAveragePool", "x", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("MatMul", "flat w", "y"),
    ]
    weights = [onnx.numpy_helper.from_array(WEIGHT, "w")]
    return graph(path, *nodes, weights=more.pop("weights", weights), **more)


def projected(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3)) @ torch.from_numpy(WEIGHT)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


class TestEmbeddings:
    def test_it_computes_what_the_graph_says(self, tmp_path: Path) -> None:
        encoder = OnnxEncoder(linear(tmp_path / "a.onnx"), size=16)
        x = torch.randn(7, 3, 16, 16)
        torch.testing.assert_close(encoder(x), projected(x))
        assert (encoder.name, encoder.dim, encoder.size) == ("a.onnx", 5, 16)
        assert not list(encoder.parameters())

    def test_a_feature_map_is_averaged(self, tmp_path: Path) -> None:
        file = graph(tmp_path / "a.onnx", node("Relu", "x", "y"), gives=ANY)
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(OnnxEncoder(file, size=8)(x), x.relu().mean(dim=(2, 3)))

    def test_a_fixed_number_of_images(self, tmp_path: Path) -> None:
        encoder = OnnxEncoder(linear(tmp_path / "a.onnx", takes=(3, 3, 8, 8), gives=(3, 5)))
        assert encoder.size == 8
        for count in (1, 3, 7):
            x = torch.randn(count, 3, 8, 8)
            torch.testing.assert_close(encoder(x), projected(x))

    def test_half_precision(self, tmp_path: Path) -> None:
        kind = onnx.TensorProto.FLOAT16
        file = graph(tmp_path / "a.onnx", node("Relu", "x", "y"), gives=ANY, kind=kind)
        x = torch.randn(2, 3, 8, 8)
        h = OnnxEncoder(file, size=8)(x)
        assert h.dtype == torch.float32
        torch.testing.assert_close(h, x.relu().mean(dim=(2, 3)), atol=1e-3, rtol=1e-2)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_images_are_normalised_by_what_the_file_says(
        self, tmp_path: Path, precision: Any
    ) -> None:
        images = np.full((3, 20, 20, 3), 128, np.uint8)
        said = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 1.0], "size": 16, "crop_pct": 1}
        encoder = OnnxEncoder(linear(tmp_path / "a.onnx", said=said))
        assert (encoder.size, encoder.crop_pct, encoder.described) == (16, 1.0, True)
        mean, std = torch.tensor(said["mean"]), torch.tensor(said["std"])
        wanted = (128 / 255 - mean) / std @ torch.from_numpy(WEIGHT)
        features = extract(encoder, Arrays("gray", images), size=16, precision=precision)
        torch.testing.assert_close(torch.from_numpy(features.embedding), wanted.expand(3, 5))
        assert Sight(encoder, 16).embed(Arrays("gray", images)).dim == 5

    def test_imagenets_normalisation_else(self, tmp_path: Path) -> None:
        encoder = OnnxEncoder(linear(tmp_path / "a.onnx"), size=16)
        assert encoder.mean == (0.485, 0.456, 0.406)
        assert encoder.std == (0.229, 0.224, 0.225)
        assert not encoder.described

    def test_weights_beside_the_file(self, tmp_path: Path) -> None:
        file = external(tmp_path / "a.onnx", "sub/w.bin")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "w.bin").write_bytes(WEIGHT.tobytes())
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(OnnxEncoder(file, size=8)(x), projected(x))


def external(path: Path, location: str) -> Path:
    weight = onnx.TensorProto(name="w", data_type=FLOAT, dims=WEIGHT.shape)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return linear(path, weights=(weight,))


def ends(*values: int) -> Any:
    return onnx.numpy_helper.from_array(np.array(values, np.int64), "ends")


class TestLimits:
    def test_a_graph_that_wants_all_memory(self, tmp_path: Path) -> None:
        weights = (ends(1 << 20, 1, 1 << 10, 1 << 10),)
        nodes = [node("Tile", "x ends", "t"), node("ReduceSum", "t", "y", keepdims=0)]
        file = graph(tmp_path / "a.onnx", *nodes, weights=weights, gives=None)
        assert file.stat().st_size < 1000
        with pytest.raises(ConfigError, match="8 × 8 pixels") as caught:
            OnnxEncoder(file, size=8)
        assert "\n" not in str(caught.value)

    def test_a_graph_that_does_not_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        helper, kinds = onnx.helper, onnx.TensorProto
        images = helper.make_tensor_value_info("v", FLOAT, ANY)
        takes = [
            helper.make_tensor_value_info("i", kinds.INT64, []),
            helper.make_tensor_value_info("c", kinds.BOOL, []),
            images,
        ]
        gives = [
            helper.make_tensor_value_info("again", kinds.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, ANY),
        ]
        inner = [node("Identity", "c", "again"), node("Sin", "v", "w")]
        body = helper.make_graph(inner, "body", takes, gives)
        count = onnx.numpy_helper.from_array(np.array(1 << 62, np.int64), "ends")
        loop = helper.make_node("Loop", ["ends", "", "x"], ["y"], body=body)
        file = graph(tmp_path / "a.onnx", loop, weights=(count,), gives=None)
        monkeypatch.setattr("selfsight.encoders.onnx._SECONDS", 0.3)
        with pytest.raises(ConfigError, match=r"took more than 0\.3 s for 1 images; it is refused"):
            OnnxEncoder(file, size=8)

    def test_a_file_brings_no_code_and_no_settings(self, tmp_path: Path) -> None:
        foreign = onnx.helper.make_node("Evil", ["x"], ["y"], domain="evil.so")
        with pytest.raises(StorageError, match="is damaged or no usable ONNX file"):
            OnnxEncoder(graph(tmp_path / "a.onnx", foreign), size=8)
        file = linear(tmp_path / "b.onnx")
        model = onnx.load(file)
        settings = json.dumps({"session_options": {"intra_op_num_threads": 7}})
        onnx.helper.set_model_props(model, {"ort_config": settings})
        onnx.save(model, file)
        threads = OnnxEncoder(file, size=8)._engine.get_session_options().intra_op_num_threads
        assert threads == torch.get_num_threads()

    def test_too_many_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
        monkeypatch.setattr("selfsight.encoders.onnx._MAX_WEIGHTS", 10)
        with pytest.raises(StorageError, match="of weights from further files"):
            OnnxEncoder(external(tmp_path / "a.onnx", "w.bin"), size=8)


class TestRefusals:
    @pytest.mark.parametrize("place", ["{}/w.bin", "../w.bin", "link", "sub/../../w.bin", ""])
    def test_weights_outside_the_folder(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
        inner = tmp_path / "inner"
        (inner / "sub").mkdir(parents=True)
        (inner / "link").symlink_to(tmp_path / "w.bin")
        file = external(inner / "a.onnx", place.format(tmp_path))
        with pytest.raises(StorageError, match="outside its folder"):
            OnnxEncoder(file, size=8)

    def test_weights_outside_by_a_nested_tensor(self, tmp_path: Path) -> None:
        (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
        (tmp_path / "inner").mkdir()
        hidden = onnx.load(external(tmp_path / "b.onnx", "../w.bin"), load_external_data=False)
        branch = onnx.helper.make_graph(
            [node("Identity", "w", "z")],
            "branch",
            [],
            [onnx.helper.make_tensor_value_info("z", FLOAT, None)],
            list(hidden.graph.initializer),
        )
        choice = node("If", "c", "y", then_branch=branch, else_branch=branch)
        file = graph(tmp_path / "inner" / "a.onnx", choice)
        with pytest.raises(StorageError, match="outside its folder"):
            OnnxEncoder(file, size=8)

    def test_missing_weights(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"needs w\.bin beside it"):
            OnnxEncoder(external(tmp_path / "a.onnx", "w.bin"), size=8)

    @pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
    def test_a_damaged_file(self, tmp_path: Path, keep: float) -> None:
        file = linear(tmp_path / "a.onnx")
        whole = file.read_bytes()
        file.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
        with pytest.raises(StorageError, match=r"a\.onnx is damaged") as caught:
            OnnxEncoder(file, size=8)
        assert "\n" not in str(caught.value)

    def test_a_file_of_another_kind_and_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.onnx").write_bytes(b"PK\x03\x04" * 100)
        with pytest.raises(StorageError, match="is damaged or no usable ONNX file"):
            OnnxEncoder(tmp_path / "a.onnx")
        with pytest.raises(StorageError, match="No such file"):
            OnnxEncoder(tmp_path / "b.onnx")
        with open(tmp_path / "a.onnx", "wb") as stream:
            os.truncate(stream.fileno(), (1 << 31) + 1)  # sparse: it takes no room
        with pytest.raises(StorageError, match="larger than 2 GiB"):
            OnnxEncoder(tmp_path / "a.onnx")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"takes": ("n", 1, 8, 8)}, r"a\.onnx takes x tensor\(float\) \['n', 1, 8, 8\]; an "),
            ({"takes": ("n", 8, 8)}, "normalised images"),
            ({"takes": ("n", 8, 8, 3)}, "normalised images"),
            ({"takes": (1, 3, 8, 16)}, "takes images of 8 × 16, not square ones"),
            ({"kind": onnx.TensorProto.UINT8}, r"takes x tensor\(uint8\)"),
            ({}, "choose one by --size"),
            ({"size": 8, "takes": (1, 3, 16, 16)}, "takes images of 16 pixels, not 8"),
        ],
    )
    def test_what_is_no_encoder(self, tmp_path: Path, more: dict[str, Any], message: str) -> None:
        size = more.get("size")
        rest = {key: value for key, value in more.items() if key != "size"}
        file = graph(tmp_path / "a.onnx", node("Identity", "x", "y"), gives=None, **rest)
        with pytest.raises(ConfigError, match=message):
            OnnxEncoder(file, size)

    def test_tokens_are_no_embedding(self, tmp_path: Path) -> None:
        rows = node("ReduceMean", "x", "y", axes=[3], keepdims=0)
        file = graph(tmp_path / "a.onnx", rows, gives=None)
        with pytest.raises(
            ConfigError, match=r"shape \(1, 3, 8\) for 1 images; export it with one"
        ):
            OnnxEncoder(file, size=8)

    def test_two_outputs(self, tmp_path: Path) -> None:
        nodes = [node("Relu", "x", "y"), node("Relu", "x", "logits")]
        file = graph(tmp_path / "a.onnx", *nodes, gives=ANY, outputs=("y", "logits"))
        with pytest.raises(ConfigError, match="2 outputs, y, logits; export it with"):
            OnnxEncoder(file, size=8)

    def test_a_size_that_the_graph_cannot_take(self, tmp_path: Path) -> None:
        shape = onnx.numpy_helper.from_array(np.array([-1, 3 * 64]), "s")
        file = graph(tmp_path / "a.onnx", node("Reshape", "x s", "y"), weights=(shape,))
        assert OnnxEncoder(file, size=8).dim == 192
        with pytest.raises(ConfigError, match="does not take images of 9 × 9 pixels"):
            OnnxEncoder(file, size=9)

    @pytest.mark.parametrize(
        "said",
        [
            "{",
            [1],
            {"mean": 1},
            {"mean": [1, 2]},
            {"std": [0, 1, 1]},
            {"mean": [1e999, 0, 0]},
            {"size": -1},
            {"size": "big"},
            {"crop_pct": 2},
            {"mean": ["a", "b", "c"]},
            "[" * 100_000,
        ],
    )
    def test_unusable_metadata(self, tmp_path: Path, said: Any) -> None:
        with pytest.raises(StorageError, match="unusable metadata under 'selfsight'"):
            OnnxEncoder(linear(tmp_path / "a.onnx", said=said), size=8)

    def test_what_a_graph_has_not(self, tmp_path: Path) -> None:
        encoder, x = OnnxEncoder(linear(tmp_path / "a.onnx"), size=8), torch.zeros(1, 3, 8, 8)
        calls = {
            "patch tokens": lambda: encoder.tokens(x),
            "feature maps": lambda: encoder.maps(x, 1),
            "attention": lambda: encoder.attention(x),
            "untrained twin": lambda: encoder.fresh(seed=0),
            "weights to copy": lambda: encoder.copied(),
            "projection of patches": lambda: encoder.patch_projection,
            "positions of patches": lambda: encoder.fix_positions(x),
        }
        for what, call in calls.items():
            with pytest.raises(ConfigError, match=f"gives embeddings, but no {what}"):
                call()
        with torch.enable_grad(), pytest.raises(ConfigError, match="without gradients"):
            encoder(x)

    def test_a_missing_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = linear(tmp_path / "a.onnx")

        def missing(name: str) -> Any:
            if name == "onnxruntime":
                raise ModuleNotFoundError("No module", name=name)
            return importlib.import_module(name)

        monkeypatch.setattr("selfsight.encoders.onnx.import_module", missing)
        with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'selfsight\[export"):
            OnnxEncoder(file, size=8)
