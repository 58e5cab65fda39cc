"""What the pages show is run, what they link to exists, what they list is complete."""

import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from selfsight.cli import COMMANDS, main
from selfsight.cli.parser import Parser
from selfsight.data.synthetic import synthetic
from selfsight.errors import Error, Stopped

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
WORDS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "LOG.md"]
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


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_methods_page_is_current() -> None:
    module = generator()
    current = module.PAGE.read_text(encoding="utf-8") == module.methods_page()
    assert current, "run python docs/generate.py"


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
