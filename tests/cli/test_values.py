"""Text to values by annotation, and files of settings."""

import inspect
import json
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from selfsight.cli.parser import Parser
from selfsight.cli.pretrain import configure
from selfsight.cli.settings import from_file
from selfsight.cli.values import annotation, expects, read, shown, typed
from selfsight.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("-3", int, -3),
        ("0.2", float, 0.2),
        ("1e-3", float, 1e-3),
        ("2", float, 2.0),
        ("true", bool, True),
        ("False", bool, False),
        ("mean", str, "mean"),
        ("none", str, "none"),
        ("4,2", tuple[int, ...], (4, 2)),
        ("4", tuple[int, ...], (4,)),
        ("0.1, 2", tuple[float, float], (0.1, 2.0)),
        ("(0.1, 2)", tuple[float, float], (0.1, 2.0)),
        ("4,2", list[int], [4, 2]),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("none", Optional[float], None),  # noqa: UP045, users write it
        ("7", int | str, 7),
        ("seven", str | int, "seven"),
        ("linear", Literal["none", "linear"], "linear"),
        ("none", Literal["none", "linear"], "none"),
        ("2", Literal[1, 2], 2),
    ],
)
def test_text_becomes_a_value_and_back(text: str, kind: Any, value: Any) -> None:
    found = read(text, kind)
    assert found == value
    assert type(found) is type(value)
    assert read(shown(value), kind) == value


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("3.5", int, "a whole number"),
        ("x", float, "a number"),
        ("nan", float, "a number"),
        ("inf", float, "a number"),
        ("1", bool, "true or false"),
        ("1,2,3", tuple[float, float], "numbers like 4,2"),
        ("1,x", tuple[int, ...], "numbers like 4,2"),
        ("", tuple[int, ...], "numbers like 4,2"),
        ("a", int | None, "a whole number or none"),
        ("square", Literal["none", "linear"], "none or linear"),
        ("{}", dict[str, int], "what only Python can pass"),
    ],
)
def test_a_wrong_value_says_what_is_expected(text: str, kind: Any, expected: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, it carries no message
        read(text, kind)
    assert expects(kind) == expected


def method(
    *, temperature: float = 0.1, crops: tuple[int, ...] = (2,), deep_head: bool = False, plain=3
) -> None: ...


KNOWN = dict(inspect.signature(method).parameters)


def test_options_of_a_method() -> None:
    texts = {"temperature": "1", "crops": "2,6", "deep-head": "true", "plain": "4"}
    parts = {f"method.{name}": text for name, text in texts.items()} | {"view.gray": "0"}
    values = typed("method", parts, KNOWN, "m")
    assert values == {"temperature": 1.0, "crops": (2, 6), "deep_head": True, "plain": 4}
    assert annotation(KNOWN["plain"]) is int


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"temprature": "1"},
            "unknown option --method.temprature for m; did you mean temperature?",
        ),
        ({"qqq": "1"}, f"unknown option --method.qqq for m; known: {', '.join(KNOWN)}"),
        ({"deep_head": "yes"}, "--method.deep_head: expected true or false, got yes"),
    ],
)
def test_wrong_options_of_a_method(texts: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed("method", {f"method.{name}": text for name, text in texts.items()}, KNOWN, "m")
    assert str(caught.value) == message


def parser() -> Parser:
    made = Parser(prog="selfsight pretrain", description="")
    configure(made)
    return made


def test_a_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    content = {
        **{"data": "photos", "epochs": 100, "lr": 0.012345678901, "save-every": 7},
        **{"weight_decay": 1e-6, "labels": True, "quiet": False, "pretrained": "weights/"},
        **{"cache": None, "method": "swav", "workers": 2},
        **{"method.dim": 64, "method.mean": True, "method.crops": [2, 6], "method.cap": None},
    }
    file.write_text(json.dumps(content))
    values, parts = from_file(parser(), str(file))
    assert values == {
        **{"data": "photos", "epochs": 100, "lr": 0.012345678901, "save_every": 7},
        **{"weight_decay": 1e-6, "labels": True, "quiet": False, "pretrained": "weights/"},
        **{"method": "swav", "threads": 2},
    }
    written = {"dim": "64", "mean": "true", "crops": "2,6", "cap": "none"}
    assert parts == {f"method.{name}": text for name, text in written.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"epoch": 3}', "unknown key epoch; did you mean epochs?"),
        ('{"print_config": true}', "unknown key print_config"),
        ('{"epochs": "many"}', "epochs: expected a whole number ≥ 1, got many"),
        ('{"epochs": 1.5}', "epochs: expected a whole number ≥ 1, got 1.5"),
        ('{"epochs": true}', "epochs: expected a number"),
        ('{"lr": [1]}', "lr: expected a number"),
        ('{"method": 3}', "method: expected text"),
        ('{"labels": "yes"}', "labels: expected true or false"),
        ('{"method.dim": {}}', "method.dim cannot hold an object"),
        ("[1]", "must hold one object"),
        ('{"epochs": 3', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_wrong_file_of_settings(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        from_file(parser(), str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
