"""What counts as a spike, and the page that counts them."""

import json

import numpy as np
import pytest
import spikes
import torch

from selfsight.data.base import Arrays
from selfsight.data.synthetic import synthetic


def test_a_spike_is_far_above_what_was_before_it():
    norms = np.ones(300)
    norms[[100, 200, 250]] = 9.0  # the first while the rate still rises
    norms[260:] = np.linspace(1, 2.9, 40)  # a slow rise is none
    assert spikes.spikes(norms) == [200, 250]
    assert spikes.spikes(norms[:160]) == []
    assert spikes.spikes([]) == []


def test_a_job_keeps_every_layers_gradient(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(spikes, "SETTINGS", {**spikes.SETTINGS, "epochs": 1, "batch": 16})
    monkeypatch.setattr(spikes, "OPTIONS", {"hidden": 16, "dim": 8})
    train = Arrays("drawn", synthetic(32, size=32)[0])
    try:
        learned, frozen = (spikes.job(way, 0, train) for way in ("learned", "frozen"))
    finally:
        torch.set_num_threads(before)
    for layer in spikes.LAYERS:
        assert len(learned["gradients"][layer]) == len(learned["loss"]) == 2
    assert frozen["gradients"]["patch_embed.proj"] == []
    assert len(frozen["gradients"]["blocks.0.attn.qkv"]) == 2


def invented(way, seed, peak):
    norms = np.ones(200)
    norms[180] = peak
    gradients = {layer: norms.tolist() for layer in spikes.LAYERS}
    if way == "frozen":
        gradients["patch_embed.proj"] = []
    return {
        "way": way, "seed": seed, "gradients": gradients, "loss": [2.0] * 200,
        "settings": json.dumps({**spikes.SETTINGS, **spikes.OPTIONS}, sort_keys=True),
        "versions": {"torch": "2"}, "cpu": "a CPU", "threads": 1,
    }  # fmt: skip


def test_the_page_counts_each_seeds(tmp_path):
    for result in (invented("learned", 0, 9), invented("learned", 1, 2), invented("frozen", 0, 8)):
        name = f"{result['way']}-{result['seed']}.json"
        (tmp_path / name).write_text(json.dumps(result))
    (tmp_path / "old.json").write_text(json.dumps({**invented("learned", 2, 9), "settings": ""}))
    text = spikes.page(spikes.gathered(tmp_path))
    assert "| learned | `patch_embed.proj` | 1 0 | 9 2 |" in text
    assert "| frozen | `patch_embed.proj` | 0 | 0 |" in text
    assert "seeds 0, 1 of 3 planned" in text


def test_the_page_is_current():
    results = spikes.gathered()
    if not results:
        assert not spikes.PAGE.exists()
        return
    current = spikes.PAGE.read_text(encoding="utf-8") == spikes.page(results)
    assert current, "run python benchmarks/spikes.py --table"


def test_what_is_missing_is_told():
    with pytest.raises(spikes.ConfigError, match="--data FILE"):
        spikes.main([])
