"""Embedding with a ResNet-18 at 224 px on a CPU, images per second: ours, OpenVINO, onnxruntime.

    pip install -e ".[bench]" openvino onnxruntime
    python benchmarks/extraction.py [--out benchmarks/results/extraction.json]

All embed the same 128 float32 images that lie in memory, in batches with two threads, and keep
their pages. The peers read one ONNX graph of the same encoder; OpenVINO computes in bf16, once
one batch at a time and once as many as it likes. `torch` is the encoder as it is, `selfsight` the
form of it that `selfsight embed` makes. The encoder's BatchNorm is that of a trained one: nothing
in it is 0 or 1. Each library has a process of its own; the sides take turns. About six minutes
on two idle cores.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import THREADS, Crew, Work, header, interleaved, probe, rates, summary, write

from selfsight.encoders.inference import inference_form
from selfsight.encoders.timm import TimmEncoder, create_encoder

SIZE, COUNT, BATCHES = 224, 128, (32, 64)
Parts = tuple[torch.Tensor, ...]
SIDES = {
    "openvino": ("openvino, bf16", "openvino, bf16, several at once"),
    "onnxruntime": ("onnxruntime, fp32",),
    "selfsight": ("torch, fp32", "torch, bf16", "selfsight, fp32", "selfsight, bf16"),
}


def drawn() -> tuple[TimmEncoder, torch.Tensor]:
    """The encoder and its images."""
    torch.manual_seed(0)
    encoder = create_encoder("resnet18", size=SIZE).eval().requires_grad_(False)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.0)
    return encoder, torch.randn(COUNT, 3, SIZE, SIZE)


def exported(file: Path, batch: int) -> None:
    encoder, x = drawn()
    torch.onnx.export(
        encoder.model, (x[:batch],), str(file), dynamo=False, input_names=["x"],
        output_names=["h"],
    )  # fmt: skip


def by_openvino(file: Path, parts: Parts, hint: str) -> Work:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": hint,
    }
    queue = openvino.AsyncInferQueue(core.compile_model(core.read_model(file), "CPU", settings))
    h = [np.empty(0)] * len(parts)

    def keep(request: object, number: int) -> None:
        h[number] = request.get_output_tensor(0).data.copy()  # type: ignore[attr-defined]

    queue.set_callback(keep)

    def run() -> np.ndarray:
        for number, part in enumerate(parts):
            queue.start_async({0: part.numpy()}, number, share_inputs=True)
        queue.wait_all()
        return np.concatenate(h)

    return run


def by_onnxruntime(file: Path, parts: Parts) -> Work:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: np.concatenate([session.run(None, {"x": part.numpy()})[0] for part in parts])


def by_torch(encoder: TimmEncoder, parts: Parts, side: str) -> Work:
    half = side.endswith("bf16")
    form = encoder
    if side.startswith("selfsight"):
        form = inference_form(encoder, torch.bfloat16 if half else torch.float32)

    def run() -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return torch.cat([form(part).float() for part in parts]).numpy()

    return run


def build(file: Path, batch: int, side: str, number: int, processes: int) -> Work:
    encoder, x = drawn()
    parts = x.split(batch)
    if side.startswith("openvino"):
        return by_openvino(file, parts, "LATENCY" if side.endswith("bf16") else "THROUGHPUT")
    return by_onnxruntime(file, parts) if "onnx" in side else by_torch(encoder, parts, side)


def measured(file: Path, batch: int, turns: int) -> dict[str, object]:
    encoder, x = drawn()
    with torch.no_grad():
        exact = torch.cat([encoder(part) for part in x.split(batch)]).numpy()
    with ExitStack() as stack:
        crews = {side: stack.enter_context(Crew(partial(build, file, batch))) for side in SIDES}
        sides = {name: crews[peer].side(name) for peer in SIDES for name in SIDES[peer]}
        apart = {}
        for peer, names in SIDES.items():
            for name in names:
                (h,) = crews[peer].ask(name, 1)
                apart[name] = float(np.linalg.norm(h - exact) / np.linalg.norm(exact))
        before = probe()
        taken = interleaved(sides, turns, 0)
        after = probe()
    found = {name: rates(COUNT, times) for name, times in taken.items()}
    summary(found, [before, after])
    ours = found["selfsight, bf16"]["median"]
    for name, rate in found.items():
        print(f"  selfsight, bf16 is {ours / rate['median']:.2f} × {name}; apart {apart[name]:.1e}")
    return {
        "batch": batch,
        "size": SIZE,
        "images": COUNT,
        "turns": turns,
        "apart": apart,
        "rates": found,
        "probe_gflops": [before, after],
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7, help="that are counted")
    parser.add_argument("--out", type=Path, help="where the numbers are written as JSON")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    cases = {}
    with tempfile.TemporaryDirectory(prefix="extraction-") as folder:
        for batch in BATCHES:
            file = Path(folder) / f"{batch}.onnx"
            exported(file, batch)
            print(f"batches of {batch}", flush=True)
            cases[f"batches of {batch}"] = measured(file, batch, options.turns)
    command = "python benchmarks/extraction.py"
    result = {**header(command, "openvino", "onnxruntime", "timm"), "cases": cases}
    if options.out:
        write(options.out, result)


if __name__ == "__main__":
    main()
