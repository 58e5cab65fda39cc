"""The sections of the page, from invented results."""

import json

import losses_page
import pytest
import views_page

HEADER = {
    "command": "python benchmarks/some.py", "python": "3.11.7", "selfsight": "0.1.0",
    "torch": "2.15.0", "lightly": "1.6.0", "torchvision": "0.29.2", "numpy": "2.4.6",
    "cpu": "a processor", "threads": 2, "load": [0.1, 0.2, 0.3],
}  # fmt: skip


def rate(median):
    return {"median": median, "min": 0.9 * median, "max": 1.1 * median}


def case(title, **rates):
    return {
        "title": title, "turns": 5, "steps": 16, "probe_gflops": [181.4, 179.6],
        "rates": {name.replace("_", ", "): rate(median) for name, median in rates.items()},
    }  # fmt: skip


VIEWS = {
    **HEADER,
    "jpegs": {"count": 64, "extent": [400, 300], "bytes": 33_400},
    "cases": {"small": case("two views", lightly=3_200.0, selfsight=240_000.0)},
}
TRAINING = {
    **HEADER,
    "cases": {
        "memory": {
            **case("images in memory"),
            "rates": {
                "lightly, 0 workers, default": rate(400.0),
                "selfsight, fp32": rate(780.0),
                "selfsight, fp32, step alone": rate(800.0),
                "selfsight, auto": rate(99.0),
                "selfsight, auto, step alone": rate(100.0),
            },
        }
    },
}
LOADING = {
    **HEADER,
    "cases": {
        "opening": {
            "images": 100_000, "batches": 2000, "batch": 64, "opening_s": 31.4, "open_mib": 20.2,
            "most_mib": 24.9, "bytes_per_image": 261.1, "growth_mib": 0.04,
        }
    },
}  # fmt: skip


def test_views_say_how_many_times_as_fast_ours_is():
    text = views_page.views(VIEWS)
    assert "| lightly | 3,200 (2,880 to 3,520) | 75.0 |" in text
    assert "| selfsight | 240,000 (216,000 to 264,000) | 1.0 |" in text
    assert "Two views:" in text
    assert "33 kB" in text
    assert "181 and 180 GFLOP/s" in text


def test_training_is_compared_with_lightly_and_with_the_step_alone():
    text = views_page.training(TRAINING)
    assert "| lightly, 0 workers, default | 400 (360 to 440) | 1.95 | 0.25 |  |" in text
    assert "| selfsight, fp32 | 780 (702 to 858) |  |  | 97.5% |" in text
    assert "| selfsight, auto | 99.0 (89.1 to 108.9) |  |  | 99.0% |" in text
    assert "5 turns of 16 steps" in text


def test_loading_has_a_row_per_case():
    text = views_page.loading(LOADING)
    assert "| opening | 31.4 | 20.2 | 24.9 | 261 | +0.0 |" in text
    assert "100,000 JPEGs" in text


@pytest.mark.parametrize("names", [(), ("views",), ("views", "end_to_end", "loading_memory")])
def test_the_page_has_what_was_measured(names, tmp_path, monkeypatch):
    results = {"views": VIEWS, "end_to_end": TRAINING, "loading_memory": LOADING}
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(results[name]), encoding="utf-8")
    losses = losses_page.RESULTS.read_bytes()
    monkeypatch.setattr(losses_page, "RESULTS", tmp_path / "losses.json")
    titles = [
        line for line in losses_page.page(json.loads(losses)).splitlines() if line[:3] == "## "
    ]
    expected = ["## Losses", "## Views", "## Training", "## Memory of a long list"]
    assert titles == expected[: len(names) + 1]
