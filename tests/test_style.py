"""The rules of the house, read off the syntax trees; each rule proves that it can fail."""

import ast
import importlib
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "selfsight"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# layer: the layers it may import. A layer names only those above it, so imports have no
# cycles. A module belongs to the longest name that begins its own.
LAYERS = {
    "errors": "",
    "counting": "errors",
    "philox": "errors",
    "ranges": "errors",
    "machine": "errors",
    "schedules": "errors",
    "losses": "errors philox",
    "heads": "errors philox",
    "masking": "errors philox",
    "patches": "errors philox",
    "meters": "errors philox losses",
    "views": "errors philox machine",
    "distributed": "errors philox",
    "batchnorm": "errors philox distributed",
    "memory": "errors philox distributed",
    "kmeans": "errors philox distributed",
    "whitening": "errors philox distributed",
    "predictors": "errors philox losses distributed",
    "optim": "errors schedules distributed",
    "encoders": "errors",
    "momentum": "errors philox schedules distributed encoders",
    "methods.base": "errors philox views distributed optim encoders",
    "instances": "errors philox losses distributed memory",
    "clusters": "errors philox losses distributed kmeans",
    # The loader hands out the batches that methods take.
    "data": "errors philox machine views methods.base",
    "methods": "errors ranges philox schedules losses heads masking patches views distributed "
    "batchnorm memory kmeans whitening predictors optim encoders momentum methods.base instances "
    "clusters",
    "export": "errors encoders",
    "features": "errors philox data",
    "extraction": "errors views encoders data features",
    "evaluate": "errors ranges philox machine counting schedules meters kmeans views optim "
    "encoders data features extraction",
    "diagnose": "errors philox meters encoders data features evaluate",
    "theory": "errors philox losses meters",
    "explore": "errors philox meters kmeans data features evaluate diagnose",
    "presets": "errors",
    "run": "errors philox machine views encoders data methods.base methods export features "
    "extraction evaluate diagnose presets",
    "comparing": "errors data evaluate run",
    "train": "errors philox counting machine schedules losses meters views distributed batchnorm "
    "optim encoders memory methods.base data methods export features extraction evaluate diagnose "
    "presets run",
    "demo": "errors data features extraction evaluate diagnose run selfsight",
    "bench": "errors machine views encoders methods.base data train",
    "doctor": "errors machine views data encoders train bench",
    # Nothing imports the command line but `python -m selfsight`.
    "cli": "errors counting ranges machine views encoders data methods export features evaluate "
    "diagnose explore presets run comparing train demo bench doctor selfsight",
    "__main__": "cli",
    # The façade loads what it is asked for, when it is asked.
    "selfsight": "errors philox losses views encoders data methods export features evaluate "
    "diagnose run comparing train",
}

# The façade stands last but serves the command line and the demo.
ABOVE_ITSELF = {("cli", "selfsight"), ("demo", "selfsight")}


def module_of(file: Path) -> str:
    """Dotted name inside the package; the façade is `selfsight`."""
    parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) or "selfsight"


def layer_of(module: str) -> str:
    parts = module.split(".")
    while parts and ".".join(parts) not in LAYERS:
        parts.pop()
    return ".".join(parts)


def own_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and target of each import of our own, wherever it stands in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "selfsight":
                    yield node.lineno, alias.name.removeprefix("selfsight.")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module == "selfsight":
                for alias in node.names:
                    # The version is a fact about the package, not a door into it.
                    if alias.name != "__version__":
                        yield node.lineno, alias.name if layer_of(alias.name) else "selfsight"
            elif (node.module or "").startswith("selfsight."):
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}".removeprefix("selfsight.")


def import_direction(module: str, source: str) -> Iterator[str]:
    layer = layer_of(module)
    if not layer:
        yield f"{module} belongs to no layer; give it a row in LAYERS"
        return
    allowed = {layer, *LAYERS[layer].split()}
    for line, target in own_imports(ast.parse(source)):
        if target.startswith("."):
            yield f"line {line}: relative import"
        elif layer_of(target) not in allowed:
            yield f"line {line}: {layer} may not import {target}"


def code_lines(source: str) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    documented = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documented)


def method_length(module: str, source: str) -> Iterator[str]:
    if module.startswith("methods.") and module != "methods.base":
        lines = code_lines(source)
        if lines > 80:
            yield f"{lines} lines of code; a method has at most 80"


def file_length(module: str, source: str) -> Iterator[str]:
    lines = source.count("\n")
    if lines > 400:
        yield f"{lines} lines; a file has at most 400"


def export_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """As ruff sorts `__all__`: constants, classes, the rest; digits as numbers."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    parts = re.findall(r"\d+|\D+", name)
    return kind, [(int(p), "") if p.isdigit() else (10**9, p) for p in parts]


def exports(module: str, source: str) -> Iterator[str]:
    """`__all__` names every public function, class and constant, and nothing unbound."""
    defined: set[str] = set()
    bound: set[str] = set()
    listed: list[str] | None = None
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            # What is written like a class here is the short name of a type.
            defined |= {name for name in names if name.isupper() and len(name) > 1}
            bound |= names
            if "__all__" in names and node.value is not None:
                listed = ast.literal_eval(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    lazy = "__getattr__" in defined
    public = {name for name in defined if not name.startswith("_")}
    if listed is None:
        if public:
            yield f"no __all__ beside {', '.join(sorted(public))}"
        return
    if listed != sorted(set(listed), key=export_order):
        yield f"__all__ should read {sorted(set(listed), key=export_order)}"
    for name in sorted(public - set(listed)):
        yield f"{name} is public and not in __all__"
    for name in sorted(set(listed) - defined - bound):
        if not lazy:
            yield f"{name} is in __all__ and nowhere else"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, by either statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def begins(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def no_guessing(module: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == "hasattr":
            yield f"line {node.lineno}: hasattr"


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal"}
UNSAFE_MODULES |= {"shelve", "numpy.core.multiarray._reconstruct"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.load", "builtins.eval"}
UNSAFE_ARGUMENTS = {("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True)}


# The one place where a pickle is opened: a process of its own that imports nothing of ours.
QUARANTINE = "export.quarantine"


def no_code_in_data(module: str, source: str) -> Iterator[str]:
    tree = ast.parse(source)
    for line, name in imported(tree):
        if begins(name, UNSAFE_MODULES):
            yield f"line {line}: import of {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            restricted = any(
                keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
                for keyword in node.keywords
            )
            called = dotted(node.func)
            if called in UNSAFE_CALLS and not (
                module == QUARANTINE and called == "torch.load" and restricted
            ):
                yield f"line {node.lineno}: {called}()"
            for keyword in node.keywords:
                value = keyword.value
                if isinstance(value, ast.Constant) and any(
                    keyword.arg == name and value.value is bad for name, bad in UNSAFE_ARGUMENTS
                ):
                    yield f"line {node.lineno}: {keyword.arg}={value.value}"


def own_imports_nothing(module: str, source: str) -> Iterator[str]:
    """What opens a stranger's file has nothing of ours within reach."""
    if module == QUARANTINE:
        yield from (f"line {line}: {name}" for line, name in own_imports(ast.parse(source)))


def telling_names(module: str, source: str) -> Iterator[str]:
    for part in module.split("."):
        if re.fullmatch(r"_*(utils?|helpers?|misc|common|managers?)", part):
            yield f"{part} says nothing about what is inside"


def timm_in_one_place(module: str, source: str) -> Iterator[str]:
    layer = module.partition(".")[0]
    for line, name in imported(ast.parse(source)):
        if begins(name, {"timm"}) and layer != "encoders":
            # What is exported is loaded back through timm's front door, nothing deeper.
            if layer == "export" and name in ("timm", "timm.create_model"):
                continue
            yield f"line {line}: {name} outside encoders/"


NETWORK = {"aiohttp", "boto3", "fsspec", "ftplib", "gdown", "http.client", "http.server", "httpx"}
NETWORK |= {"huggingface_hub", "mlflow", "requests", "smtplib", "socket", "socketserver"}
NETWORK |= {"urllib.request", "urllib3", "wandb", "websockets", "xmlrpc"}


def no_network_on_import(module: str, source: str) -> Iterator[str]:
    statements: list[ast.AST] = [ast.parse(source)]
    while statements:
        node = statements.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            for line, name in imported(ast.Module([node], [])):
                if begins(name, NETWORK):
                    yield f"line {line}: {name} at module level"
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            statements += ast.iter_child_nodes(node)


def no_machine_paths(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"(?<![\w.~}])/(home|root|work|workspace|Users|mnt|scratch)/\w", line):
            yield f"line {number}: a path of one machine"
        if re.search(r"\b[A-Z]:\\\\?\w", line):
            yield f"line {number}: a path of one machine"


def no_package_index(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"https?://[^\s\"'<>)]*(pypi|pythonhosted|download\.pytorch|conda)", line):
            yield f"line {number}: the address of a package index"
        if re.search(r"--(extra-)?index-url|--find-[l]inks|PIP_(EXTRA_)?INDEX_URL", line):
            yield f"line {number}: a choice of package index"


Rule = Callable[[str, str], Iterator[str]]

# rule, and a module with a source that break it
SOURCE_RULES: list[tuple[Rule, str, str]] = [
    (import_direction, "losses.dense", "from selfsight.heads import mlp"),
    (import_direction, "methods.byol", "def f():\n    from selfsight import train"),
    (import_direction, "data.loader", "if TYPE_CHECKING:\n    import selfsight.methods.byol"),
    (import_direction, "train.loop", "from selfsight.cli.output import note"),
    (import_direction, "train.loop", "from selfsight import pretrain"),
    (import_direction, "views.cpu", "from .spec import View"),
    (import_direction, "unheard_of", ""),
    (method_length, "methods.long", '"""One."""\n' + "x = 1\n" * 81),
    (file_length, "long", "# line\n" * 401),
    (exports, "bare", "def public(): ..."),
    (exports, "unsorted", "__all__ = ['b', 'a']\ndef a(): ...\ndef b(): ..."),
    (exports, "missing", "__all__ = ['a']\ndef a(): ...\nTABLE = 3"),
    (exports, "phantom", "__all__ = ['a', 'b']\ndef a(): ..."),
    (no_guessing, "guess", "hasattr(x, 'y')"),
    (no_code_in_data, "a", "import pickle"),
    (no_code_in_data, "a", "from torch.serialization import load\nfrom dill import loads"),
    (no_code_in_data, "a", "torch.load(f, weights_only=False)"),
    (no_code_in_data, "a", "torch.load(f, weights_only=True)"),
    (no_code_in_data, QUARANTINE, "torch.load(f)"),
    (no_code_in_data, QUARANTINE, "torch.load(f, weights_only=restricted)"),
    (own_imports_nothing, QUARANTINE, "from selfsight.errors import ConfigError"),
    (no_code_in_data, "a", "load(f, weights_only=False)"),
    (no_code_in_data, "a", "np.load(f, allow_pickle=True)"),
    (no_code_in_data, "a", "yaml.load(f)"),
    (no_code_in_data, "a", "eval(text)"),
    (no_code_in_data, "a", "exec(text)"),
    (telling_names, "train.utils", ""),
    (telling_names, "_helpers", ""),
    (timm_in_one_place, "train.loop", "import timm"),
    (timm_in_one_place, "run", "def f():\n    from timm.layers import trunc_normal_"),
    (timm_in_one_place, "export.model", "from timm.models import load_model_config_from_hf"),
    (no_network_on_import, "a", "import requests"),
    (no_network_on_import, "a", "try:\n    from urllib.request import urlopen\nfinally: pass"),
]
TEXT_RULES: list[tuple[Rule, str, str]] = [
    (no_machine_paths, "a", "data = '/" + "home/ann/photos'"),
    (no_machine_paths, "a", "data = 'C:" + "\\\\photos'"),
    (no_package_index, "a", "see https:/" + "/pypi.org/simple"),
    (no_package_index, "a", "pip install --index" + "-url x"),
]


def tracked_files() -> list[Path]:
    """Text files that are, or would be, part of the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:  # an unpacked archive
        files = [p for p in ROOT.rglob("*") if not re.search(r"/(\.venv|\.git|runs)/", str(p))]
    else:
        files = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [p for p in files if p.is_file() and b"\0" not in p.read_bytes()[:1024]]


def named(rule: Rule) -> str:
    return rule.__name__


def distinct(rules: list[tuple[Rule, str, str]]) -> list[Rule]:
    return list(dict.fromkeys(rule for rule, _, _ in rules))


@pytest.mark.parametrize("rule", distinct(SOURCE_RULES), ids=named)
def test_sources_keep(rule: Rule) -> None:
    faults = [
        f"{file.relative_to(ROOT)}: {fault}"
        for file in SOURCES
        for fault in rule(module_of(file), file.read_text(encoding="utf-8"))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("rule", distinct(TEXT_RULES), ids=named)
def test_tracked_files_keep(rule: Rule) -> None:
    faults = [
        f"{file.relative_to(ROOT)}: {fault}"
        for file in tracked_files()
        for fault in rule(str(file), file.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(("rule", "module", "source"), SOURCE_RULES + TEXT_RULES)
def test_rules_can_fail(rule: Rule, module: str, source: str) -> None:
    assert list(rule(module, source))


def test_rules_have_something_to_read() -> None:
    assert len(SOURCES) > 10
    assert ROOT / "pyproject.toml" in tracked_files()


def test_layers_have_no_cycle() -> None:
    order = list(LAYERS)
    for layer, allowed in LAYERS.items():
        for other in allowed.split():
            above = order.index(other) < order.index(layer)
            assert above or (layer, other) in ABOVE_ITSELF, f"{layer} → {other}"


def test_code_lines_leave_out_words() -> None:
    words = '"""Doc."""\n\n# why\ndef f(x):\n    """Doc\n    more."""\n'
    source = words + "    return (\n        x  # y\n    )\n"
    assert code_lines(source) == 4


def test_lazy_exports_exist() -> None:
    lazy = [f for f in SOURCES if re.search(r"^def __getattr__", f.read_text("utf-8"), re.M)]
    for name in {"selfsight", *(f"selfsight.{module_of(f)}" for f in lazy)}:
        module = importlib.import_module(name.replace("selfsight.selfsight", "selfsight"))
        for public in getattr(module, "__all__", []):
            assert getattr(module, public) is not None
