import json

import losses_page


def test_the_page_is_current():
    results = json.loads(losses_page.RESULTS.read_bytes())
    current = losses_page.PAGE.read_text(encoding="utf-8") == losses_page.page(results)
    assert current, "run python benchmarks/losses_page.py"


def test_every_case_has_its_numbers():
    results = json.loads(losses_page.RESULTS.read_bytes())
    text = losses_page.page(results)
    for name, case in results["cases"].items():
        assert text.count(f"| {name} |") == 3
        assert f"| {case['lighter']:.1f} |" in text
