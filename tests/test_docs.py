"""What the pages show is run, what they link to exists, what they list is complete."""

import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import selfsight
from selfsight.cli import COMMANDS, main
from selfsight.cli.parser import Parser
from selfsight.data.synthetic import synthetic
from selfsight.errors import Error, Stopped
from selfsight.methods import FAMILIES, METHODS, method_class
from selfsight.train.config import Settings, resolve

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
WORDS = [*PAGES, *sorted(DOCS.glob("methods/*.md")), ROOT / "CHANGELOG.md", ROOT / "LOG.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return BLOCK.findall(text)


def commands(block: str) -> list[list[str]]:
    """The words of each line of a shell block that runs selfsight."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("selfsight ")]


def by_name(path: Path) -> str:
    return path.name


def written(count: int, folder: Path, *, labels: bool) -> None:
    images, numbers, classes = synthetic(count, size=40)
    for index, (pixels, number) in enumerate(zip(images, numbers, strict=True)):
        place = folder / classes[number] if labels else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index:03}.jpg")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny work: more threads cost more than they bring, and the results must not vary."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: photos, labelled images, and a run."""
    folder = tmp_path_factory.mktemp("desk")
    written(64, folder / "photos", labels=False)
    written(60, folder / "labelled", labels=True)
    words = ["--encoder", "resnet18", "--size", "32", "--epochs", "2", "--batch", "32", "--quiet"]
    run = folder / "runs" / "photos"
    assert main(["pretrain", str(folder / "photos"), *words, "--out", str(run)]) == 0
    return folder


@pytest.fixture
def here(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the desk to stand at, with the examples beside it."""
    folder = tmp_path / "here"
    shutil.copytree(desk, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    # A user's own method is found from the folder in which they stand.
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_a_page_does_what_it_says(page: Path, here: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if "--out runs/photos\n" in "".join(block for kind, block in blocks(text) if kind == "bash"):
        shutil.rmtree(here / "runs" / "photos")
    names: dict[str, object] = {"__name__": "page"}
    for kind, block in blocks(text):
        assert kind in ("python", "bash", "text"), f"a block of {kind or 'no language'}"
        if kind == "python":
            exec(compile(block, page.name, "exec"), names)
        elif kind == "bash":
            for words in commands(block):
                assert main(words) == 0, shlex.join(words)


def test_the_readme_counts_the_methods() -> None:
    count = sum(not method_class(name).supervised for name in METHODS)
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{count} published self-supervised methods" in text
    assert f"There are {count} methods" in text


def test_examples_stand_in_pages_which_run_them() -> None:
    assert EXAMPLES
    shown = [block for page in PAGES for block in blocks(page.read_text(encoding="utf-8"))]
    for example in EXAMPLES:
        block = ("python", example.read_text(encoding="utf-8"))
        assert block in shown, f"no page shows {example.name}"


def anchors(text: str) -> set[str]:
    """The names of a page's headings, as a browser is sent to them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> Iterator[str]:
    """Links and images that lead nowhere."""
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page.parent / name
        if not target.exists():
            yield link
        elif anchor:
            body = target.read_text(encoding="utf-8") if name else text
            if anchor not in anchors(body):
                yield link


@pytest.mark.parametrize("page", WORDS, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_broken_links_are_seen() -> None:
    text = "# A b\n[a](#a-b) [b](#c) ![c](no.png) [d](docs/index.md) [e](https://x.y)"
    assert list(broken(ROOT / "README.md", text)) == ["#c", "no.png"]


def test_every_page_is_listed() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"]({page.name})" in index


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks for its own module by name.
    sys.modules["generate"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["generate"]


def test_generated_pages_are_current(generate: ModuleType) -> None:
    assert generate.stale() == [], "run python docs/generate.py"


def test_stale_pages_are_seen(generate: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for path, text in generate.pages().items():
        page = folder / path.relative_to(DOCS)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    assert generate.stale(folder) == []
    (folder / "methods" / "gone.md").write_text("# gone\n", encoding="utf-8")
    (folder / "methods" / "mae.md").unlink()
    (folder / "coverage.md").write_text("# Coverage\n", encoding="utf-8")
    assert generate.stale(folder) == ["coverage.md", "methods/gone.md", "methods/mae.md"]


def test_every_method_is_listed_in_one_family(generate: ModuleType) -> None:
    assert sorted(" ".join(FAMILIES.values()).split()) == sorted(METHODS)
    index = generate.pages()[DOCS / "methods.md"]
    for family, names in FAMILIES.items():
        section = index.partition(f"\n## {family}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| \[`(\w+)`\]", section, re.MULTILINE) == names.split()


def test_every_method_states_its_loss(generate: ModuleType) -> None:
    pages = {path.stem: text for path, text in generate.pages().items() if path.parent != DOCS}
    assert [name for name, text in pages.items() if "\nLoss: `" not in text] == []


def test_measurements_reach_the_pages(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = {"mean": 0.512, "low": 0.43, "high": 0.6}
    fact = {"name": "simclr", "method": "simclr", "encoder": "resnet18_small", "seeds": 3}
    fact |= {"views": 300_000, "knn": score, "linear": None, "effects": {}, "passes": True}
    ablation = {**fact, "name": "simclr_cold", "twin": "simclr", "knn": {**score, "mean": 0.2}}
    measured = tmp_path / "learn.json"
    measured.write_text(json.dumps([fact, ablation]), encoding="utf-8")
    monkeypatch.setattr(generate, "MEASURED", measured)
    pages = generate.pages.__wrapped__()
    # The list has the method as it is, its page the ablations too.
    assert "| 51.2 (43.0 to 60.0) |" in pages[DOCS / "methods.md"]
    assert "| simclr_cold |" in pages[DOCS / "methods" / "simclr.md"]
    assert "| 3 | 300,000 | 51.2 (43.0 to 60.0) | – | yes |" in pages[DOCS / "methods/simclr.md"]
    assert "Not yet measured." in pages[DOCS / "methods" / "mae.md"]


def test_every_row_of_the_slides_is_there_once(generate: ModuleType) -> None:
    numbers = [row.id for _, table in generate.tables() for row in table]
    assert sorted(numbers) == list(range(1, 307))


@pytest.mark.parametrize(
    "row", ["", "later = 'a', external = 'b'", "pretrain = '', later = 'a'", "latr = 'a'"]
)
def test_a_row_says_one_thing(generate: ModuleType, tmp_path: Path, row: str) -> None:
    path = tmp_path / "coverage.toml"
    fields = ", ".join(["id = 1", "what = 'SimCLR'", *([row] if row else [])])
    path.write_text(f"[[table]]\nrows = [{{ {fields} }}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="S1 "):
        generate.tables(path)


# What a run that was resolved may differ in without being resolved again.
LENGTH = ("batch", "epochs", "lr")


class Images:
    """As much of ImageNet as the choice of a run's values looks at."""

    name = "images"
    sizes = np.array([[375, 500]])
    class_count = 1000

    def __len__(self) -> int:
        return 1_281_167


def refused(line: str, tried: set[str]) -> Iterator[str]:
    """What the command line has against a command; nothing is read, trained or allocated.

    tried: runs that were resolved before, since many differ in their length only
    """
    name, *words = shlex.split(line)[1:]
    module = importlib.import_module(f"selfsight.cli.{name}")
    parser = Parser(prog=name, description="")
    module.configure(parser)
    try:
        arguments = parser.read(words)
        if name == "evaluate":
            module.selected(arguments)
            if arguments.pretrained:
                assert timm.get_pretrained_cfg(arguments.subject).has_weights
            return
        known = {field.name for field in fields(Settings)}
        given = {k: v for k, v in module._settings(arguments).items() if k in known}
        run = str(sorted((k, str(v)) for k, v in given.items() if k not in LENGTH))
        if run not in tried:
            tried.add(run)
            with torch.device("meta"):
                resolve(Settings(**given), Images())
    except Error as error:
        yield f"{line}: {error}"


def test_commands_of_the_slides_are_accepted(generate: ModuleType) -> None:
    tried: set[str] = set()
    rows = [row for _, table in generate.tables() for row in table if row.same is None]
    faults = [fault for row in rows for line in row.lines() for fault in refused(line, tried)]
    assert not faults, "\n" + "\n".join(faults)
    assert len(tried) > 100


@pytest.mark.parametrize(
    "words",
    [
        "pretrain x --method simclr --method.temperatur 1 --out y",
        "pretrain x --method.head round --out y",
        "pretrain x --encoder resnet5000 --out y",
        "pretrain x --method mae --encoder resnet18 --out y",
        "pretrain x --optimizer sgd --out y",
        "pretrain x --view.crop 2 --out y",
        "pretrain x --epoch 5 --out y",
        "pretrain x",
        "evaluate y x --protocols knn,liner",
    ],
)
def test_a_wrong_command_is_refused(words: str) -> None:
    assert list(refused(f"selfsight {words}", set()))


def test_expressions_of_the_slides_are_right(generate: ModuleType) -> None:
    rows = [row for _, table in generate.tables() for row in table if row.python]
    cov = torch.tensor([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]])
    assert rows
    for row in rows:
        importlib.import_module(row.python.partition("(")[0].rpartition(".")[0])
        w = eval(row.python, {"selfsight": selfsight, "cov": cov})
        torch.testing.assert_close(w @ cov @ w.T, torch.eye(3))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained(command: str) -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    _, _, section = page.partition(f"\n## {command}\n")
    section = section.partition("\n## ")[0]
    assert section, f"no section on {command}"
    parser = Parser(prog=command, description="")
    importlib.import_module(f"selfsight.cli.{command}").configure(parser)
    flags = [flag for flag in parser.flags if flag not in ("-h", "--help")]
    assert [flag for flag in flags if not re.search(rf"{flag}(?![\w-])", section)] == []


def test_every_exit_code_is_explained() -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2].partition("\n## ")[0]
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    kinds = [Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = {kind.exit_code for kind in kinds if kind is not Stopped}
    assert codes | {0, 1, 75, 130, 143} <= explained
