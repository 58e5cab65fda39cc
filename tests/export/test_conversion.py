"""Official checkpoints become model folders whose h is the checkpoint's; hostile ones do not."""

import argparse
import json
import os
import sysconfig
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from selfsight.cli import main
from selfsight.encoders import create_encoder
from selfsight.encoders.layouts import LAYOUTS, find, recognise
from selfsight.encoders.timm import TimmEncoder
from selfsight.errors import ConfigError, StorageError
from selfsight.export import conversion, convert, load_model, quarantine
from selfsight.export.conversion import read_checkpoint

State = dict[str, Tensor]
VIT, RESNET = "test_vit", "resnet18"
SIZE = {VIT: 32, RESNET: 32}


def made(name: str, seed: int) -> TimmEncoder:
    encoder = create_encoder(name, size=SIZE[name], seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # BatchNorm's statistics differ between the branches as well
        for value in encoder.model.state_dict().values():
            if value.is_floating_point():
                value += 0.05 * torch.rand(value.shape, generator=draw)
    return encoder.eval()


# Two sets of weights of each architecture, by which branch they are.
BRANCHES = {name: {"student": made(name, 1), "teacher": made(name, 2)} for name in (VIT, RESNET)}


def state(name: str, branch: str = "student") -> State:
    found: State = BRANCHES[name][branch].model.state_dict()
    return found


def under(prefix: str, tensors: State) -> State:
    return {prefix + key: value for key, value in tensors.items()}


def head(*names: str) -> State:
    return {name: torch.ones(3, 3) for name in names}


def numbered(tensors: State) -> State:
    """As `nn.Sequential(*resnet.children())` keys a ResNet."""
    places = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(i + 3) for i in range(1, 5)}}
    split = [(key.partition("."), value) for key, value in tensors.items()]
    return {f"{places[first]}.{rest}": value for (first, _, rest), value in split}


def optimizer() -> dict[str, Any]:
    return {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.03}]}


ARGS = argparse.Namespace(arch="resnet18", lr=0.03, schedule=[120, 160], world_size=-1)


def moco(q: str, k: str, name: str, heads: State) -> dict[str, Any]:
    inner = under(f"{q}.", {**state(name), **heads})
    inner |= under(f"{k}.", {**state(name, "teacher"), **heads})
    inner |= head("queue", "queue_ptr", "predictor.0.weight")
    wrapped = under("module.", inner)
    return {"epoch": 5, "arch": name, "state_dict": wrapped, "optimizer": optimizer()}


def dino(name: str, more: State) -> dict[str, Any]:
    return {
        "student": under("module.backbone.", {**state(name), **more})
        | under("module.head.", head("mlp.0.weight")),
        "teacher": under("backbone.", state(name, "teacher"))
        | under("head.", head("mlp.0.weight")),
        "optimizer": optimizer(),
        "epoch": 3,
        "args": ARGS,
        "fp16_scaler": None,
        "dino_loss": OrderedDict(center=torch.zeros(1, 4)),
    }


def lucidrains() -> State:
    nets = {"net": "student", "online_encoder.net": "student", "target_encoder.net": "teacher"}
    inner: State = {}
    for place, branch in nets.items():
        inner |= under(f"{place}.", {**state(RESNET, branch), **head("fc.weight")})
    return {**inner, **head("online_encoder.projector.0.weight", "online_predictor.0.weight")}


FC = head("fc.weight", "fc.bias")
MLP = head("fc.0.weight", "fc.2.weight")
PROJECTOR = head("projector.0.weight", "projector.3.weight")

# name of the case: layout, whether its keys show it, architecture, checkpoint
CASES: dict[str, tuple[str, bool, str, Any]] = {
    "moco_v1": ("moco_v1", True, RESNET, moco("encoder_q", "encoder_k", RESNET, FC)),
    "moco_v2": ("moco_v2", True, RESNET, moco("encoder_q", "encoder_k", RESNET, MLP)),
    "moco_v3": ("moco_v3", True, RESNET, moco("base_encoder", "momentum_encoder", RESNET, MLP)),
    "moco_v3 vit": (
        "moco_v3",
        True,
        VIT,
        moco("base_encoder", "momentum_encoder", VIT, head("head.0.weight")),
    ),
    "byol lucidrains": ("byol", True, RESNET, lucidrains()),
    "byol sthalles": (
        "byol",
        True,
        RESNET,
        {
            f"{net}_network_state_dict": under("encoder.", numbered(state(RESNET, branch)))
            | head("projetion.net.0.weight")
            for net, branch in (("online", "student"), ("target", "teacher"))
        },
    ),
    "simsiam": (
        "simsiam",
        True,
        RESNET,
        {
            "state_dict": under("module.encoder.", {**state(RESNET), **MLP})
            | head("module.predictor.0.weight")
        },
    ),
    "swav": (
        "swav",
        True,
        RESNET,
        under(
            "module.", {**state(RESNET), **head("projection_head.0.weight", "prototypes.weight")}
        ),
    ),
    "dino": ("dino", True, VIT, dino(VIT, {})),
    "dino resnet": ("dino", True, RESNET, dino(RESNET, {})),
    "ibot": ("ibot", True, VIT, dino(VIT, head("masked_embed"))),
    "barlow_twins": (
        "barlow_twins",
        True,
        RESNET,
        {
            "epoch": 3,
            "model": under("module.backbone.", state(RESNET))
            | under("module.", {**PROJECTOR, **head("bn.running_mean")}),
        },
    ),
    "barlow_twins resnet50.pth": ("barlow_twins", False, RESNET, {**state(RESNET), **FC}),
    "vicreg": (
        "vicreg",
        True,
        RESNET,
        {"model": under("module.", {**under("backbone.", state(RESNET)), **PROJECTOR})},
    ),
    "mae": (
        "mae",
        True,
        VIT,
        {
            "model": {
                **state(VIT),
                **head("mask_token", "decoder_embed.weight", "decoder_pos_embed"),
            },
            "args": ARGS,
            "scaler": {"scale": 65536.0},
        },
    ),
    "simclr spijkervet": (
        "simclr",
        True,
        RESNET,
        {**under("encoder.", state(RESNET)), **PROJECTOR},
    ),
    "simclr sthalles": (
        "simclr",
        True,
        RESNET,
        {"state_dict": under("backbone.", {**state(RESNET), **MLP})},
    ),
    "simclr converter": ("simclr", False, RESNET, {"state_dict": {**state(RESNET), **FC}}),
    "plain": ("plain", True, VIT, state(VIT)),
}
# What the papers evaluate.
EVALUATED = {name: "teacher" if name in ("dino", "ibot") else "student" for name in LAYOUTS}


def pickled(folder: Path, content: Any, name: str = "checkpoint.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def flat(content: Any, prefix: str = "") -> State:
    """What the other process makes of a checkpoint."""
    if isinstance(content, Tensor):
        return {prefix[:-1]: content.clone()}
    inner = content if isinstance(content, dict) else {}
    parts = [flat(v, f"{prefix}{k}.") for k, v in inner.items() if isinstance(k, str)]
    return {key: value for part in parts for key, value in part.items()}


def written(folder: Path, content: Any) -> Path:
    save_file(flat(content), folder / "checkpoint.safetensors")
    return folder / "checkpoint.safetensors"


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_encoder_is_the_checkpoints(case: str, tmp_path: Path) -> None:
    layout, shown, name, content = CASES[case]
    out = tmp_path / "out"
    given = "auto" if shown else layout
    file = written(tmp_path, content)
    found = convert(file, out, encoder=name, layout=given, size=SIZE[name])
    assert (found.layout, found.branch) == (layout, EVALUATED[layout])
    model = load_model(out).eval()
    x = torch.randn(2, 3, SIZE[name], SIZE[name])
    h = BRANCHES[name][found.branch](x)
    torch.testing.assert_close(model(x), h, atol=0, rtol=0)
    assert model.size == SIZE[name]
    assert (model.mean, model.std) == (LAYOUTS[layout].mean, LAYOUTS[layout].std)
    said = json.loads((out / "config.json").read_text())["selfsight"]["converted"]
    assert said["checkpoint"] == file.name
    assert said["left"] == list(found.left)


@pytest.mark.parametrize("branch", ["student", "teacher"])
@pytest.mark.parametrize(
    "case", ["moco_v2", "moco_v3", "byol lucidrains", "byol sthalles", "dino", "ibot"]
)
def test_each_branch_is_itself(case: str, branch: Any) -> None:
    _, _, name, content = CASES[case]
    found = find(flat(content), branch=branch)
    own = state(name, branch)
    assert found.tensors.keys() == own.keys()
    assert all(torch.equal(found.tensors[key], value) for key, value in own.items())


def test_what_is_left_is_listed() -> None:
    left = ("encoder_k", "encoder_q.fc", "predictor", "queue", "queue_ptr")
    assert find(flat(CASES["moco_v2"][3])).left == left
    assert find(flat(CASES["dino"][3])).left == ("dino_loss", "student", "teacher.head")
    left = ("decoder_embed", "decoder_pos_embed", "mask_token")
    assert find(flat(CASES["mae"][3])).left == left
    assert find(state(VIT)).left == ()


def test_normalisation_is_the_methods_own(tmp_path: Path) -> None:
    assert LAYOUTS["simclr"].mean == (0, 0, 0)
    assert LAYOUTS["swav"].std == (0.228, 0.224, 0.225)
    file = written(tmp_path, state(RESNET))
    convert(file, tmp_path / "out", encoder=RESNET, size=32, mean=(0.5, 0.4, 0.3))
    model = load_model(tmp_path / "out")
    assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.229, 0.224, 0.225))
    with pytest.raises(ConfigError, match="a deviation is above 0, got 1, 0, 1"):
        convert(file, tmp_path / "other", encoder=RESNET, std=(1, 0, 1))


@torch.no_grad()
def test_what_no_shape_tells_is_the_layouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = LAYOUTS["moco_v3"]
    assert layout.arguments == {"vit_small_patch16_224": {"num_heads": 12}}
    monkeypatch.setitem(LAYOUTS, "moco_v3", replace(layout, arguments={VIT: {"num_heads": 1}}))
    theirs = create_encoder(VIT, size=32, seed=0, num_heads=1).eval()
    file = written(tmp_path, under("base_encoder.", theirs.model.state_dict()))
    convert(file, tmp_path / "out", encoder=VIT, size=32)
    x = torch.randn(2, 3, 32, 32)
    h = load_model(tmp_path / "out").eval()(x)
    assert torch.equal(h, theirs(x))
    assert not torch.equal(h, load_plain(tmp_path, theirs)(x))


def load_plain(tmp_path: Path, encoder: TimmEncoder) -> TimmEncoder:
    """The same weights as timm would use them."""
    file = written(tmp_path, encoder.model.state_dict())
    convert(file, tmp_path / "plain", encoder=VIT, size=32)
    return load_model(tmp_path / "plain").eval()


def refused(tmp_path: Path, tensors: State, name: str = RESNET, **options: Any) -> str:
    file = written(tmp_path, tensors)
    with pytest.raises(ConfigError) as caught:
        convert(file, tmp_path / "out", encoder=name, **{"size": 32, **options})
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_left_random(tmp_path: Path) -> None:
    whole = state(RESNET)
    lacking = {key: value for key, value in whole.items() if key != "layer3.0.conv1.weight"}
    assert "lacks layer3.0.conv1.weight;" in refused(tmp_path, lacking)
    assert "also has attic.0.weight;" in refused(tmp_path, {**whole, **head("attic.0.weight")})
    wrong = {**whole, "conv1.weight": torch.ones(64, 3, 3, 3)}
    assert "differs in conv1.weight (64×3×3×3, not 64×3×7×7)" in refused(tmp_path, wrong)
    wrong = {**whole, "bn1.weight": torch.ones(64, dtype=torch.int64)}
    assert "bn1.weight (64 int64, not 64)" in refused(tmp_path, wrong)
    bad = {**whole, "bn1.weight": torch.full((64,), torch.nan)}
    assert "not finite in bn1.weight" in refused(tmp_path, bad)
    message = refused(tmp_path, state(VIT), VIT, size=64)
    assert "pos_embed (1×5×64, not 1×17×64); give --size" in message
    message = refused(tmp_path, whole, VIT)
    assert "this plain checkpoint is no test_vit: it lacks blocks.0" in message
    assert "and 74 more" in message


def test_a_missing_count_of_batches_and_half_precision_do_not_matter(tmp_path: Path) -> None:
    old = {k: v.half() for k, v in state(RESNET).items() if "num_batches" not in k}
    convert(written(tmp_path, old), tmp_path / "out", encoder=RESNET, size=32)
    loaded = load_model(tmp_path / "out").model.state_dict()
    assert loaded["bn1.weight"].dtype == torch.float32
    assert torch.equal(loaded["bn1.weight"], state(RESNET)["bn1.weight"].half().float())
    assert loaded["bn1.num_batches_tracked"] == 0


def test_wrong_requests(tmp_path: Path) -> None:
    plain, queue = state(RESNET), CASES["moco_v2"][3]["state_dict"]
    assert "; did you mean moco_v2?" in refused(tmp_path, queue, layout="mocov2")
    assert "one encoder; leave --branch teacher" in refused(tmp_path, plain, branch="teacher")
    message = refused(tmp_path, plain, layout="moco_v2")
    assert "no keys like encoder_q.…, where moco_v2 keeps its student, but bn1.bias, " in message
    assert "of no layout that is known" in refused(tmp_path, head("a.b.c", "d"))
    assert "did you mean resnet18?" in refused(tmp_path, plain, "resnt18")
    both = {**plain, **under("module.", plain)}
    assert "holds bn1.num_batches_tracked twice" in refused(tmp_path, both)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").touch()
    with pytest.raises(ConfigError, match="taken exists"):
        convert(tmp_path / "checkpoint.safetensors", tmp_path / "taken", encoder=RESNET)
    with pytest.raises(StorageError, match="there is no checkpoint at"):
        convert(tmp_path / "none.pth", tmp_path / "out", encoder=RESNET)


def test_every_layout_is_recognised_before_what_it_contains() -> None:
    shown = {layout for layout, shown, _, _ in CASES.values() if shown}
    assert shown == set(LAYOUTS)
    with pytest.raises(ConfigError, match="name one by --from: barlow_twins, byol"):
        recognise([])


def test_safetensors_need_no_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    save_file(state(VIT), tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "o", encoder=VIT, size=32).left == ()
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(StorageError, match=r"b\.safetensors cannot be read"):
        read_checkpoint(tmp_path / "b.safetensors", tmp_path)


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Tricky:
    """Pickled as a Namespace whose state would change its class and its methods."""

    def __reduce__(self) -> Any:
        state = {"__setstate__": torch.Size, "__class__": OrderedDict, "keys": 1}
        return argparse.Namespace, (), (state, {"__class__": torch.Size, "__dict__": {}})


def nested(value: Any, times: int) -> Any:
    for _ in range(times):
        value = {"a": value}
    return value


class TestUnpickling:
    """What the other process does, without its limits."""

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("deep", [False, True])
    def test_a_call_is_not_made(self, tmp_path: Path, legacy: bool, deep: bool) -> None:
        file, mark = tmp_path / "c.pth", tmp_path / "mark"
        trap: Any = Call(os.system, f"touch {mark}")
        if deep:  # inside the one class that is let through
            trap = argparse.Namespace(lr=trap)
        content = {"state_dict": {"a": torch.ones(1)}, "args": trap}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UnpicklingError, match=r"GLOBAL posix\.system"):
            quarantine.tensors(str(file))
        assert not mark.exists()

    @pytest.mark.parametrize("function", [eval, exec, getattr, __import__, os.unlink, Path])
    def test_nothing_else_is_called(self, tmp_path: Path, function: Any) -> None:
        file = pickled(tmp_path, {"a": Call(function, "1"), "b": torch.ones(1)})
        with pytest.raises(UnpicklingError, match=f"GLOBAL .*{function.__name__}"):
            quarantine.tensors(str(file))

    def test_a_namespace_does_nothing(self, tmp_path: Path) -> None:
        hidden = argparse.Namespace(a=torch.ones(1), __dict__={"b": torch.ones(1)})
        content = {"model": {"c": torch.ones(2)}, "args": Tricky(), "more": hidden}
        tensors = quarantine.tensors(str(pickled(tmp_path, content)))
        assert list(tensors) == ["model.c"]
        assert torch.equal(tensors["model.c"], torch.ones(2))

    def test_settings_keep_nothing(self) -> None:
        settings = quarantine.Settings()
        settings.__setstate__({"a": 1})
        with pytest.raises(AttributeError):
            settings.a = 1  # type: ignore[attr-defined]

    def test_what_holds_itself_ends(self, tmp_path: Path) -> None:
        loop: dict[str, Any] = {"a": torch.ones(1)}
        loop["loop"] = loop
        tensors = quarantine.tensors(str(pickled(tmp_path, loop)))
        assert max(key.count(".") for key in tensors) == 7
        assert quarantine.tensors(str(pickled(tmp_path, nested(torch.ones(1), 9)))) == {}

    @pytest.mark.filterwarnings("ignore:Validating sparse")
    def test_shared_weights_are_each_kept(self, tmp_path: Path) -> None:
        one = torch.arange(6.0).reshape(2, 3)
        content = {"a": one, "b": one, "c": one.T, "d": one[1], "e": one.to_sparse(), 3: one}
        tensors = quarantine.tensors(str(pickled(tmp_path, content)))
        assert list(tensors) == ["a", "b", "c", "d"]
        save_file(tensors, tmp_path / "file")
        for name, wanted in (("b", one), ("c", one.T), ("d", one[1])):
            assert torch.equal(tensors[name], wanted)


class TestQuarantine:
    def test_it_is_the_only_way_and_takes_no_advice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "torch.py").write_text("raise SystemExit('taken over')")
        file = pickled(tmp_path, {"a": Call(os.system, f"touch {tmp_path / 'mark'}")})
        with pytest.raises(StorageError, match=r"is refused: it asks for posix\.system") as caught:
            read_checkpoint(Path(file.name), Path())
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, "torch.py"]

    def test_it_knows_neither_the_environment_nor_the_users_packages(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = tmp_path / "home"
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("PYTHONUSERBASE", str(home / "base"))
        monkeypatch.setenv("SECRET", "secret")
        scheme = sysconfig.get_preferred_scheme("user")
        for base in (home / "base", home / ".local"):
            place = Path(sysconfig.get_path("purelib", scheme, {"userbase": str(base)}))
            place.mkdir(parents=True)
            (place / "sneaky.py").write_text("")
            (place / "sneaky.pth").write_text("import sneaky; import os; os.abort()")
        # Stands for a checkpoint that has taken the process over.
        (tmp_path / "taken.py").write_text(
            "import importlib.util, os, pathlib, sys\n"
            "import torch\n"  # not for want of a path
            "home = pathlib.Path.home()\n"
            "sneaky = importlib.util.find_spec('sneaky')\n"
            "found = dict(names=sorted({*os.environ} - {'LC_CTYPE', '__CF_USER_TEXT_ENCODING'}),\n"
            "    home=sorted(home.iterdir()), sneaky=sneaky, isolated=sys.flags.isolated)\n"
            "sys.exit(repr(found))\n"
        )
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
        monkeypatch.setattr(conversion, "_QUARANTINE", tmp_path / "taken.py")
        with pytest.raises(StorageError) as caught:
            read_checkpoint(pickled(tmp_path, {"a": torch.ones(1)}), tmp_path)
        wanted = {
            "names": ["HOME", "OMP_NUM_THREADS", "TMPDIR"],
            "home": [],
            "sneaky": None,
            "isolated": 1,
        }
        assert str(caught.value).endswith(repr(wanted))

    def test_a_small_file_of_a_huge_tensor(self, tmp_path: Path) -> None:
        huge = torch.ones(1).expand(1 << 20, 1 << 16)
        file = pickled(tmp_path, {"a": huge, "b": torch.ones(1)})
        assert file.stat().st_size < 4096
        with pytest.raises(StorageError, match="would unpack to far more than its size"):
            read_checkpoint(file, tmp_path)

    def test_damage_is_one_line(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "c.pth").write_bytes(b"not a checkpoint")
        code = quarantine.main(str(tmp_path / "c.pth"), str(tmp_path / "out"))
        said = capsys.readouterr().err
        assert (code, said.count("\n")) == (1, 1)
        (tmp_path / "damage.py").write_text(f"import sys; sys.exit({said!r})")
        monkeypatch.setattr(conversion, "_QUARANTINE", tmp_path / "damage.py")
        with pytest.raises(StorageError, match=r"c\.pth is damaged or no checkpoint") as caught:
            read_checkpoint(tmp_path / "c.pth", tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_reader_that_hangs_is_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "sleeper.py").write_text("import time; time.sleep(60)")
        monkeypatch.setattr(conversion, "_QUARANTINE", tmp_path / "sleeper.py")
        monkeypatch.setattr(conversion, "_SECONDS", 0.5)
        with pytest.raises(StorageError, match=r"not read within 1\.0 s"):
            read_checkpoint(pickled(tmp_path, {"a": torch.ones(1)}), tmp_path)

    def test_a_reader_that_is_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 9)")
        monkeypatch.setattr(conversion, "_QUARANTINE", tmp_path / "killed.py")
        with pytest.raises(StorageError, match=r"more time or memory than its size \(signal 9\)"):
            read_checkpoint(pickled(tmp_path, {"a": torch.ones(1)}), tmp_path)


@torch.no_grad()
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = pickled(tmp_path, CASES["dino"][3]), tmp_path / "model"
    words = ["--encoder", VIT, "--size", "32", "--out"]
    assert main(["convert", str(file), *words, str(out)]) == 0
    shown, said = capsys.readouterr()
    assert shown == f"{out}\n"
    assert "dino, its teacher; left out: dino_loss, student, teacher.head\n" in said
    assert "32 px, mean 0.485,0.456,0.406, std 0.229,0.224,0.225\n" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "model"]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_model(out).eval()(x), BRANCHES[VIT]["teacher"](x))

    other = ["convert", str(written(tmp_path, CASES["dino"][3])), *words, str(tmp_path / "other")]
    more = ["--branch", "student", "--from", "dino", "--mean", "0.5,0.5,0.5", "--json"]
    assert main([*other, *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["branch"], facts["mean"]) == ("student", [0.5, 0.5, 0.5])
    assert main([*other, "--mean", "1,2"]) == 2
    assert "--mean: expected three numbers like 0.5,0.5,0.5, got 1,2" in capsys.readouterr().err
    assert main(other) == 2
    assert "other exists" in capsys.readouterr().err
    assert main(["evaluate", str(file), "synthetic"]) == 2
    assert f"model folder of it: selfsight convert {file} --encoder NAME" in capsys.readouterr().err
