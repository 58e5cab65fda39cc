"""What a run's folder answers when it is asked."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from torch import nn

import selfsight
from selfsight.data.synthetic import synthetic
from selfsight.errors import StorageError
from selfsight.evaluate import KNN, judge
from selfsight.run import Run, sight
from selfsight.train import checkpoint

ASKED = {"encoder": "test_resnet", "batch": 32, "epochs": 4, "precision": "fp32", "quiet": True}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    images, labels, _ = synthetic(120, size=32)
    path = tmp_path_factory.mktemp("labelled") / "labelled.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, labelled):
    return selfsight.pretrain(labelled, out=tmp_path_factory.mktemp("runs") / "run", **ASKED)


def test_a_finished_run_can_be_opened_again(run):
    again = selfsight.load(run.path)
    assert isinstance(again, selfsight.Run)
    assert repr(again) == f"Run({str(run.path)!r})"
    assert again.config == run.config
    assert (again.config["method"], again.config["encoder"]) == ("simclr", "test_resnet")
    assert len(again.metrics) == 12
    assert again.record["data"]["images"] == 120


def test_the_encoder_is_a_plain_timm_module(run):
    encoder = run.encoder
    assert type(encoder).__module__.startswith("timm.")
    assert isinstance(encoder, nn.Module)
    theirs = timm.create_model(f"local-dir:{run.path / 'model'}", pretrained=True)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x), theirs.eval()(x))
    assert encoder.state_dict().keys() == theirs.state_dict().keys()


def test_the_encoder_is_what_was_trained(run):
    last = checkpoint.load(run.path / "checkpoints" / checkpoint.name(12)).method
    for key, value in run.encoder.state_dict().items():
        assert torch.equal(value, last[f"encoder.model.{key}"]), key


def test_embeddings(run, labelled):
    features = run.embed(labelled)
    assert isinstance(features, selfsight.Features)
    assert features.embedding.shape == (120, run.model.dim)
    assert features.embedding.dtype == np.float32
    assert np.isfinite(features.embedding).all()
    np.testing.assert_array_equal(features.label, np.load(labelled)["labels"])
    again = selfsight.load(run.path).embed(np.load(labelled)["images"])
    np.testing.assert_array_equal(again.embedding, features.embedding)
    whole, half = (run.embed(labelled, precision=precision) for precision in ("fp32", "bf16"))
    assert not np.array_equal(whole.embedding, half.embedding)
    assert run.evaluate(labelled, precision="fp32").judged.precision == "fp32"


def test_evaluation(run, labelled):
    report = run.evaluate(labelled, protocols=["knn"])
    assert {score.protocol for score in report.scores} == {"knn"}
    score = report["knn"]
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert 20 <= score.n <= 30


def test_evaluation_at_another_size(run, labelled):
    asked = KNN(k=3)
    report = run.evaluate(labelled, protocols=[asked], size=64)
    assert report.json() == judge(run.sight(64), labelled, [asked]).json()
    newest = run.evaluations[0]
    assert (newest.judged.size, newest.score.options["k"]) == (64, 3)
    untrained = run.controls(labelled, [asked], size=64)["untrained"]
    assert untrained.json() == judge(sight(run.untrained(), 64), labelled, [asked]).json()


def test_the_controls(run, labelled):
    reports = run.controls(labelled, protocols=("knn",))
    assert list(reports) == ["raw pixels", "untrained", "trained"]
    assert len({report["knn"].n for report in reports.values()}) == 1
    assert reports["trained"].json() == run.evaluate(labelled, protocols=("knn",)).json()


OPTIONS = {
    "simclr": {"dim": 8},
    "byol": {"hidden": 16, "dim": 8},
    "mae": {"depth": 1, "width": 16, "heads": 2},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_the_untrained_encoder_is_that_of_step_0(tmp_path, labelled, method):
    """With a rate of zero only BatchNorm's statistics move."""
    encoder = "test_vit" if method == "mae" else "test_resnet"
    still = {**ASKED, "encoder": encoder, "epochs": 1, "lr": 0.0, "seed": 3}
    run = selfsight.pretrain(
        labelled, out=tmp_path / "r", method=method, options=OPTIONS[method], **still
    )
    before = torch.random.get_rng_state()
    untrained = run.untrained()
    assert torch.equal(torch.random.get_rng_state(), before)
    trained = dict(run.model.named_parameters())
    for name, p in untrained.named_parameters():
        assert torch.equal(p, trained[name]), name


def test_untrained_is_not_trained(run):
    trained = dict(run.model.named_parameters())
    moved = [n for n, p in run.untrained().named_parameters() if not torch.equal(p, trained[n])]
    assert len(moved) > len(trained) / 2


def test_there_is_a_verdict_of_h_and_of_z(run):
    verdict = run.verdict
    assert set(verdict) == {"h", "z"}
    assert {v.name for v in verdict.values()} == {"h", "z"}
    assert all(v.evidence and v.advice for v in verdict.values())


@pytest.fixture
def copy(run, tmp_path):
    return Run(shutil.copytree(run.path, tmp_path / "copy"))


def test_an_unfinished_run_says_how_to_finish(copy, labelled):
    shutil.rmtree(copy.path / "model")
    for ask in (lambda: copy.encoder, lambda: copy.embed(labelled)):
        with pytest.raises(StorageError, match=f"selfsight resume {copy.path}"):
            ask()
    assert copy.verdict


def test_a_line_that_a_kill_cut_short_is_left_out(copy):
    path = copy.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [row["step"] for row in copy.metrics] == list(range(11))
    path.write_bytes(b"{}\n{\n{}\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be read"):
        _ = copy.metrics
    path.unlink()
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be read"):
        _ = copy.verdict


def test_a_folder_without_a_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", str(tmp_path)):
        with pytest.raises(StorageError, match=r"holds no run: there is no run\.json in it"):
            selfsight.load(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_damaged_record_is_told(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    run = selfsight.load(tmp_path)
    with pytest.raises(StorageError, match=r"run\.json"):
        _ = run.config


def test_the_record_says_where_everything_comes_from(run):
    record = json.loads((run.path / "run.json").read_text())
    assert set(record["reasons"]) == set(record["config"])
    assert record["reasons"]["batch"] == "given"
    assert set(record["versions"]) >= {"selfsight", "python", "torch", "timm"}
    assert len(record["data"]["fingerprint"]) == 64
    assert record["topology"]["world"] == 1
    assert "seconds" not in (run.path / "metrics.jsonl").read_text()
