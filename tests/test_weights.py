"""Checkpoints of other projects: parity with the published network, renaming, and errors for unsuitable files."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from released_files import fill, hollow, names_and_shapes
from safetensors.torch import save_file
from tiny import batch, model_spec

from fercli.errors import FercliError
from fercli.models.build import build_network
from fercli.models.kinds import Description
from fercli.models.names import (
    from_face_evolve_names,
    from_published_names,
    to_face_evolve_names,
    to_published_names,
)
from fercli.models.weights import load_weights, read_weights

FROZEN = Path(__file__).parent / "fixtures" / "global_local.json"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
IR_STAGES = {"ir18": (2, 2, 2, 2), "ir50": (3, 4, 14, 3)}


@pytest.fixture(scope="module")
def ir18():
    torch.manual_seed(0)
    return build_network(model_spec(backbone="ir18"))


@pytest.fixture
def small():
    torch.manual_seed(1)
    return build_network(model_spec())


# --------------------------------------------------------------------------------------------------------------- parity


class Published:
    """The network of a fixture: its state filled by the rule, its expected outputs, and our network to fill."""

    def __init__(self, name: str):
        self.frozen = json.loads(FROZEN.read_text())[name]
        with torch.device("meta"):
            self.network = build_network(model_spec(backbone=name)).eval()
        empty = to_published_names(self.network.state_dict())
        assert names_and_shapes(empty) == self.frozen["names"]
        self.name, self.state = name, fill(empty)
        self.network.to_empty(device="cpu")
        rng = np.random.RandomState(7)
        self.images = torch.from_numpy(rng.standard_normal((2, 3, 112, 112)).astype(np.float32))
        self.landmarks = 4.0 * torch.from_numpy(rng.randint(3, 25, (2, 5, 2))) + 1.5

    def load(self, path: Path) -> Description:
        """Fill the network from a file, after making every number of it wrong."""
        for tensor in self.network.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
        return load_weights(self.network, path)


@pytest.fixture(scope="module", params=["ir18", pytest.param("ir50", marks=pytest.mark.slow)])
def published(request):
    return Published(request.param)


def agrees(ours: torch.Tensor, expected: list) -> bool:
    expected = torch.tensor(expected)
    return bool(((ours - expected).abs() / expected.abs().clamp(min=0.1)).max() < 1e-4)


STATUS = torch.arange(49.0).view(7, 7) / 49
AGRA_EXTRAS = {
    "fc.weight": torch.ones(7, 384),
    "fc.bias": torch.ones(7),
    "loc_fc.weight": torch.ones(7, 320),
    "GCN.gc1.weight": torch.ones(64, 128),
    "SourceMean.mean": torch.ones(384),
    "TargetMean.mean": torch.ones(384),
    "SourceBN.bn_1.weight": torch.ones(64),
    "TargetBN.bn_1.running_var": torch.ones(64),
}
#: How a file of each kind stores the published network's state.
LOADERS = {
    "aglrls": lambda state: {
        "epoch": 3, "classwise": list(STATUS), "model": state, "optimizer": {}, "ad_nets": [{}], "optimizer_ad": {},
    },
    "aglrls, DataParallel": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "agra": lambda state: {k: v for k, v in state.items() if not k.startswith("classifiers.")} | AGRA_EXTRAS,
    "face-evolve": lambda state: body_numbered(state),
    "fercli": lambda state: {"network": from_published_names(state), "spec": {}, "status": STATUS},
    "safetensors": lambda state: state,
}  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
def test_the_published_network_is_reproduced_through_every_loader(published, loader, tmp_path):
    path = tmp_path / f"published.{loader.split(',')[0]}"
    (save_file if loader == "safetensors" else torch.save)(LOADERS[loader](published.state), path)
    description = published.load(path)
    path.unlink()
    kind = {"safetensors": "aglrls", "aglrls, DataParallel": "aglrls"}.get(loader, loader)
    assert description.kind == kind
    assert description.architecture.blocks == IR_STAGES[published.name]
    has_status = loader in ("aglrls", "fercli")
    assert torch.equal(description.class_status, STATUS) if has_status else description.class_status is None
    now, due = published.network.state_dict(), from_published_names(published.state)
    assert all(torch.equal(now[key], due[key]) for key in due if key.split(".")[0] in description.parts)
    if loader == "face-evolve":
        with torch.inference_mode():
            maps = published.network.backbone(published.images)
            published.network.load_state_dict(due)
            assert all(map(torch.equal, maps, published.network.backbone(published.images)))
        return
    with torch.inference_mode():
        logits, features = published.network(published.images, published.landmarks)
    assert agrees(features.flatten(1), published.frozen["features"])
    if loader == "agra":
        assert logits.isnan().all()
    else:
        assert agrees(logits.transpose(0, 1), published.frozen["logits"])


@pytest.mark.parametrize("name", ["ir18", "ir50"])
def test_the_frozen_copy_is_the_shared_fixture(name):
    path = SHARED / f"global_local_{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    shared, frozen = json.loads(path.read_text()), json.loads(FROZEN.read_text())
    assert frozen[name]["features"] == shared["features"] and frozen[name]["logits"] == shared["logits"]
    assert frozen["fill"] == shared["fill"] and frozen["inputs"] == shared["inputs"]
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in shared["params"].items()}
    assert names_and_shapes(state) == frozen[name]["names"]


# ------------------------------------------------------------------------------------------------------------- renaming


def test_renaming_round_trip(ir18):
    state = ir18.state_dict()
    published = to_published_names(state)
    assert from_published_names(published) == state
    assert not any(key.startswith(("backbone.", "global_head.", "local_nets.")) for key in published)
    for name in (
        "input_layer.2.weight",
        "layer3.1.res_layer.4.running_var",
        "layer2.0.shortcut_layer.0.weight",
        "output_layer.0.bias",
        "Crop_Net.4.2.shortcut_layer.1.weight",
        "Crop_Net.0.4.bias",
        "classifiers.2.weight",
    ):
        assert name in published
    assert from_published_names({"GCN.weight": 1}) == {"GCN.weight": 1}


def body_numbered(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The backbone of a published state with face.evoLVe's names, and face.evoLVe's own head, which is not needed."""
    stages = next(v for v in IR_STAGES.values() if f"layer3.{v[2]}.res_layer.0.weight" not in published)
    state = {"output_layer.3.weight": torch.ones(512, 25), "output_layer.0.running_mean": torch.ones(512)}
    for key, value in published.items():
        head, _, rest = key.partition(".")
        if head.startswith("layer"):
            block, _, rest = rest.partition(".")
            state[f"body.{sum(stages[: int(head[5:]) - 1]) + int(block)}.{rest}"] = value
        elif head == "input_layer":
            state[key] = value
    return state


def test_face_evolve_blocks_are_counted_through_the_stages():
    with torch.device("meta"):
        network = build_network(model_spec(backbone="ir50"))
    renamed = from_face_evolve_names(body_numbered(to_published_names(network.state_dict())))
    wanted = {key for key in network.state_dict() if key.startswith("backbone.")}
    assert {key for key in renamed if key.startswith("backbone.")} == wanted
    there = to_face_evolve_names(network.state_dict())
    assert {"body.2.res_layer.1.weight", "body.3.shortcut_layer.0.weight", "body.23.res_layer.4.bias"} <= set(there)
    assert set(from_face_evolve_names(there)) == wanted


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "backbone.", "net.module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_face_evolve_backbone_loads_under_any_prefix_and_keeps_the_rest(ir18, tmp_path, prefix, wrapped):
    state = {prefix + key: value for key, value in body_numbered(to_published_names(ir18.state_dict())).items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "backbone_ir18.pth")
    network = build_network(model_spec(backbone="ir18"))
    rest = {key: value.clone() for key, value in network.state_dict().items() if not key.startswith("backbone.")}
    description = load_weights(network, tmp_path / "backbone_ir18.pth")
    assert (description.kind, description.parts) == ("face-evolve", ("backbone",))
    assert str(description.architecture) == "an IR-18 (blocks 2-2-2-2), backbone only"
    now, wanted = network.state_dict(), ir18.state_dict()
    assert all(torch.equal(now[key], wanted[key]) for key in now if key.startswith("backbone."))
    assert all(torch.equal(now[key], value) for key, value in rest.items())


def test_torchvision_imagenet_weights_fill_the_mobilenet(tmp_path):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(2)
    theirs = mobilenet_v2(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "mobilenet_v2-b0353104.pth")
    network = build_network(model_spec(backbone="mobilenet-v2", weights=tmp_path / "mobilenet_v2-b0353104.pth"))
    assert all(
        torch.equal(value, theirs.state_dict()[key.removeprefix("backbone.")])
        for key, value in network.state_dict().items()
        if key.startswith("backbone.features.")
    )


# ----------------------------------------------------------------------------------------------- dicts that should load


def test_our_own_checkpoint_round_trip(small, tmp_path):
    torch.save({"network": small.state_dict(), "step": 7, "spec": {"model": {"width": 8}}}, tmp_path / "last.ckpt")
    description = read_weights(tmp_path / "last.ckpt").description
    assert description.kind == "fercli" and description.left_over == () and description.class_status is None
    assert description.architecture.title == "a small IR-10 of width 8"
    assert description.parameters == sum(p.numel() for p in small.parameters())
    other = build_network(model_spec(weights=tmp_path / "last.ckpt")).eval()
    with torch.inference_mode():
        assert torch.equal(other(*batch()).logits, small.eval()(*batch()).logits)


WRAPPED = {
    "bare": ("", ()),
    "DataParallel": ("module.", ()),
    "DataParallel in model": ("module.", ("model",)),
    "state_dict": ("", ("state_dict",)),
    "Lightning": ("model.", ("state_dict",)),
    "model_state_dict": ("", ("model_state_dict",)),
    "compiled": ("_orig_mod.", ("model_state_dict",)),
    "compiled under DDP": ("module._orig_mod.", ("model",)),
    "a stack nobody listed": ("trainer.net._orig_mod.module.", ("checkpoint", "ema", "weights")),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_published_state_under_any_wrapper(small, tmp_path, case):
    prefix, place = WRAPPED[case]
    document = {f"{prefix}{key}": value for key, value in to_published_names(small.state_dict()).items()}
    for key in reversed(place):
        others = {"epoch": 4, "classwise": [torch.full((7,), 0.5)] * 7, "optimizer": {"state": {}, "param_groups": []}}
        document = {**others, key: document}
    torch.save(document, tmp_path / "a")
    other = build_network(model_spec())
    description = load_weights(other, tmp_path / "a")
    assert description.kind == "aglrls"
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), small.state_dict().values(), strict=True))
    assert description.epoch == (4 if place else None)
    assert (
        description.class_status is None
        if not place
        else torch.equal(description.class_status, torch.full((7, 7), 0.5))
    )


def test_submodule_that_was_compiled_and_a_swa_average(small, tmp_path):
    state = {f"module.{k}".replace(".backbone.", ".backbone._orig_mod."): v for k, v in small.state_dict().items()}
    torch.save({"n_averaged": torch.tensor(3), **state}, tmp_path / "swa.pt")
    other = build_network(model_spec())
    assert load_weights(other, tmp_path / "swa.pt").kind == "fercli"
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), small.state_dict().values(), strict=True))


AMBIGUOUS = {
    "weights and their average": (
        lambda state: {"model": state, "ema": {"shadow": state}},
        r"contains 2 networks \(model: AGLRLS/CGLRL checkpoint, ema\.shadow: AGLRLS/CGLRL checkpoint\); save the one",
    ),
    "a network and a loss": (
        lambda state: {"state_dict": {**{f"net.{k}": v for k, v in state.items()}, "loss.weight": torch.ones(7)}},
        r"tensors in state_dict with unknown names \(net\.\* \(\d+\), loss\.\*\)",
    ),
    "names that would become one": (
        lambda state: {**state, **{f"module.{k}": v for k, v in list(state.items())[:1]}, "other": torch.ones(1)},
        r"unexpected: .*module\.",
    ),
    "one mapping in many places": (
        lambda state: {f"a{i}": d for d in [{f"b{i}": {"x": [1]} for i in range(99)}] for i in range(9999)},
        r"has entries that are not plain tensors: a0\.b0\.x, a0\.b1\.x",
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_cannot_be_unwrapped_safely_is_refused_by_its_inner_names(small, tmp_path, case):
    make, message = AMBIGUOUS[case]
    torch.save(make(to_published_names(small.state_dict())), tmp_path / "a")
    with pytest.raises(FercliError, match=message):
        load_weights(small, tmp_path / "a")


def test_agra_checkpoint_fills_all_but_the_classifiers(small, tmp_path):
    state = {k: v for k, v in to_published_names(small.state_dict()).items() if not k.startswith("classifiers.")}
    state |= {"fc.weight": torch.zeros(7, 384), "GCN.A": torch.zeros(6, 6), "SourceMean.mean": torch.zeros(384)}
    torch.save(state, tmp_path / "agra.pkl")
    other = build_network(model_spec())
    description = load_weights(other, tmp_path / "agra.pkl")
    assert (description.kind, description.parts) == ("agra", ("backbone", "global_head", "local_nets"))
    assert [(it.name, it.tensors) for it in description.left_over] == [("fc.*", 1), ("GCN.*", 1), ("SourceMean.*", 1)]
    assert torch.equal(other.global_head.conv.weight, small.global_head.conv.weight)
    assert not torch.equal(other.classifiers[0].weight, small.classifiers[0].weight)


def test_half_precision_and_missing_counters_are_fine(small, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in small.state_dict().items()}
    torch.save({"network": {k: v for k, v in state.items() if not k.endswith("tracked")}}, tmp_path / "half.ckpt")
    other = build_network(model_spec(weights=tmp_path / "half.ckpt"))
    assert other.backbone.stem[0].weight.dtype == torch.float32
    assert torch.equal(other.classifiers[2].weight, small.classifiers[2].weight.half().float())


@pytest.mark.parametrize("name", ["small.safetensors", "small.bin"])
@pytest.mark.parametrize("names", [dict, to_published_names])
def test_safetensors_are_recognised_by_their_extension_or_first_bytes(small, tmp_path, name, names):
    save_file(names(small.state_dict()), tmp_path / name)
    other = build_network(model_spec(weights=tmp_path / name))
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), small.state_dict().values(), strict=True))


def test_what_a_file_says_about_itself_is_checked(small, tmp_path):
    """Entries with other types than ours, or out of range, are ignored."""
    document = {
        "network": small.state_dict(), "epoch": 10**30, "status": torch.full((7, 7), float("nan")),
        "optimizer": torch.ones(2), "stage": "adapt", "method_name": ["x"], "target": "a\nb",
        "best": {"rule": 3, "score": float("nan")}, "spec": {"name": laughs(16), "data": {"source": [[], "x"]}},
    }  # fmt: skip
    torch.save(document, tmp_path / "odd.ckpt")
    description = read_weights(tmp_path / "odd.ckpt").description
    assert (description.epoch, description.class_status) == (None, None)
    assert [it.name for it in description.left_over] == ["optimizer"]
    assert description.record == {"stage": "adapt", "target": "a\\nb", "source": ["<list>", "x"]}


# ------------------------------------------------------------------------------------------- files that must be refused


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def deep(value: object) -> object:
    for _ in range(50):
        value = [value]
    return value


def laughs(levels: int) -> list:
    """Ten lists of ten lists of ...: a few hundred bytes, but 10^levels values."""
    value: list = []
    for _ in range(levels):
        value = [value] * 10
    return value


def smuggle(path: Path, network, program: bytes) -> None:
    """Write a good checkpoint whose archive has another program in its place, deflated."""
    torch.save({"network": network.state_dict()}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            bad = name.endswith("data.pkl")
            archive.writestr(
                name, program if bad else data, zipfile.ZIP_DEFLATED if len(program) > 999 and bad else None
            )


def changed(network, **changes) -> dict[str, torch.Tensor]:
    """Our own checkpoint with some tensors replaced, or left out if the value is None. `__` stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    state = {key: value.clone() for key, value in network.state_dict().items()} | changes
    return {"network": {key: value for key, value in state.items() if value is not None}}


def nan_in(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().flatten().index_fill(0, torch.tensor([1]), float("nan")).view_as(tensor)


UNREADABLE = {
    "empty": (lambda path, net: path.write_bytes(b""), "file is empty; download or copy it again"),
    "text": (lambda path, net: path.write_text("accuracy 0.91\n" * 9), "is not a PyTorch checkpoint, or is damaged"),
    "image": (lambda path, net: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "is not a PyTorch checkpoint"),
    "folder": (lambda path, net: path.mkdir(), "is a folder; give a checkpoint file"),
    "absent": (lambda path, net: None, r"does not exist; give a checkpoint file \(or model.weights: null for none\)"),
    "code": (
        lambda path, net: torch.save({"model": Hostile(path.with_name("ran"))}, path),
        r"asks to run code \((posix|nt)\.system\) while it is read, which is refused",
    ),
    "code, old format": (
        lambda path, net: torch.save([Hostile(path.with_name("ran"))], path, _use_new_zipfile_serialization=False),
        r"asks to run code \((posix|nt)\.system\)",
    ),
    "code, bare pickle": (
        lambda path, net: path.write_bytes(pickle.dumps(Hostile(path.with_name("ran")), protocol=2)),
        r"asks to run code \((posix|nt)\.system\)",
    ),
    "code, deep inside": (
        lambda path, net: torch.save({"network": net.state_dict(), "spec": deep(Hostile(path.with_name("ran")))}, path),
        r"asks to run code \((posix|nt)\.system\)",
    ),
    "code, smuggled into a good archive": (
        lambda path, net: smuggle(path, net, pickle.dumps(Hostile(path.with_name("ran")), protocol=2)),
        r"asks to run code \((posix|nt)\.system\)",
    ),
    "code, hidden in a name": (
        lambda path, net: smuggle(path, net, b"\x80\x02cos\x1b[31msystem\nevil\n."),
        r"asks to run code \(os\\x1b\[31msystem\.evil\)",
    ),
    "bomb": (
        lambda path, net: smuggle(path, net, b"\x80\x02" + bytes(50_000_000)),
        "unpacks to more than its own size",
    ),
    "lists in lists": (
        lambda path, net: path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "is not a PyTorch checkpoint, or is damaged",
    ),
    "a thousand million million lists": (
        lambda path, net: torch.save({"model": {"a": laughs(16)}}, path),
        "has entries that are not plain tensors: model.a;",
    ),
    "names that are no text": (
        lambda path, net: torch.save({"model": {("a", 1): torch.ones(1), 7: torch.ones(1)}}, path),
        "has entries that are not plain tensors: model.<tuple>, model.<int>;",
    ),
    "names that clear the screen": (
        lambda path, net: torch.save({"model": {"a\x1b[2J\nerror": torch.ones(1), "b" * 999: torch.ones(1)}}, path),
        r"unknown names \(a\\x1b\[2J\\nerror, b{157}\.\.\.\)",
    ),
    "quantised": (
        lambda path, net: torch.save({"network": changed(net, a=torch.ones(2, dtype=torch.int8))["network"]}, path),
        "has entries that are not plain tensors: network.a;",
    ),
    "safetensors, cut": (
        lambda path, net: (save_file(net.state_dict(), path), path.write_bytes(path.read_bytes()[:-1])),
        "is truncated, damaged or not a safetensors file",
    ),
    "whole module": (lambda path, net: torch.save(net, path), r"asks to run code \(fercli\.models.*GlobalLocal\)"),
    "a number": (lambda path, net: torch.save(3, path), "contains an object of type int, not a dict of tensors"),
    "no tensors": (
        lambda path, net: torch.save({"epoch": 3}, path),
        "has entries that are not plain tensors: epoch; fercli reads its own, AGLRLS",
    ),
    "nothing": (lambda path, net: torch.save({"model": {}}, path), "its state is empty"),
    "sparse": (
        lambda path, net: torch.save({"network": {"a": torch.eye(3).to_sparse()}}, path),
        "has entries that are not plain tensors: network.a",
    ),
    "another network": (
        lambda path, net: torch.save(torch.nn.Linear(2, 2).state_dict(), path),
        r"2 tensors with unknown names \(weight, bias\)",
    ),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("case", UNREADABLE)
def test_files_that_cannot_be_read_are_refused_in_one_line(case, small, tmp_path):
    write, message = UNREADABLE[case]
    path = tmp_path / "file.pkl"
    write(path, small)
    for read in (read_weights, lambda path: load_weights(small, path)):
        with pytest.raises(FercliError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_files_cut_off_anywhere_are_refused(small, tmp_path, zipped):
    path = tmp_path / "cut.pkl"
    torch.save({"network": small.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for kept in (1, 3, 40, 500, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(FercliError, match=r"truncated|damaged") as caught:
            load_weights(small, path)
        assert "\n" not in str(caught.value)


MISFITS = {
    "wrong depth": (
        lambda net: {"model": hollow("ir50")},
        r"the file is an IR-50, but the spec asks for a small IR-10 of width 8 \(set model.backbone: ir50\)$",
    ),
    "wrong width": (
        lambda net: {"network": build_network(model_spec(width=4)).state_dict()},
        r"a small IR-10 of width 4, .* width 8 \(set model.backbone: ir-small and model.width: 4\)$",
    ),
    "everything else": (
        lambda net: {
            "network": build_network(model_spec(width=4, classifiers="separate", local="image-crop")).state_dict()
        },
        r"width 4.*model.classifiers: separate, but the spec asks for shared.*"
        r"model.local: image-crop, but the spec asks for feature-map$",
    ),
    "missing": (
        lambda net: changed(net, classifiers__0__bias=None, backbone__stem__0__weight=net.backbone.stem[0].weight),
        r"1 missing: classifiers\.0\.bias$",
    ),
    "all at once": (
        lambda net: changed(
            net,
            global_head__conv__bias=None,
            more=torch.zeros(2),
            classifiers__0__bias=torch.zeros(8),
            classifiers__1__bias=torch.zeros(7, dtype=torch.int64),
            classifiers__2__bias=nan_in(torch.zeros(7)),
        ),
        r"1 missing: global_head\.conv\.bias; 1 unexpected: more; "
        r"1 of another shape: classifiers\.0\.bias is \[8\], not \[7\]; "
        r"1 of another type: classifiers\.1\.bias is torch\.int64; "
        r"1 with NaN or infinite numbers: classifiers\.2\.bias$",
    ),
    "another class count": (
        lambda net: changed(
            net, **{f"classifiers__{i}__weight": torch.zeros(8, 384 if i == 2 else 64) for i in range(3)}
        ),
        r"the file distinguishes 8 classes, but fercli has 7 expressions \(give weights trained on these expressions",
    ),
    "a missing classifier": (
        lambda net: changed(net, classifiers__2__weight=None, classifiers__2__bias=None),
        r"2 missing: classifiers\.2\.weight, classifiers\.2\.bias$",
    ),
    "extra tensors": (
        lambda net: changed(net, GCN__A=torch.zeros(6, 6), backbone__stages__0__1__body__1__weight=torch.zeros(1)),
        r"the file is a small IR-12 of width 8, but the spec asks for a small IR-10",
    ),
    "unknown extra tensors": (
        lambda net: changed(net, GCN__A=torch.zeros(6, 6), more=torch.zeros(1)),
        r"2 unexpected: GCN\.A, more$",
    ),
    "half precision that overflowed": (
        lambda net: changed(net, classifiers__0__weight=torch.full((7, 64), 1e6).half()),
        r"1 with NaN or infinite numbers: classifiers\.0\.weight$",
    ),
    "shapes": (
        lambda net: changed(net, **{f"classifiers__{i}__bias": torch.zeros(6) for i in range(3)}),
        r"3 of another shape: classifiers\.0\.bias is \[6\], not \[7\], classifiers\.1\.bias is \[6\], not \[7\], "
        r"classifiers\.2\.bias is \[6\], not \[7\]$",
    ),
    "strange numbers of blocks": (
        lambda net: (
            {"input_layer.0.weight": torch.zeros(64, 3, 3, 3)}
            | {f"body.{number}.res_layer.0.weight": torch.zeros(64) for number in ("³", "9" * 5000, "x", "")}
        ),
        r"missing: backbone\.stem\.0\.weight|unexpected|the spec asks for",
    ),
    "NaN": (
        lambda net: changed(net, backbone__stem__1__running_var=nan_in(torch.ones(8))),
        r"1 with NaN or infinite numbers: backbone\.stem\.1\.running_var$",
    ),
    "immense": (
        lambda net: changed(net, classifiers__0__weight=torch.zeros(1).expand(10**12, 64)),
        r"1 of another shape: classifiers\.0\.weight is \[1000000000000, 64\], not \[7, 64\]$",
    ),
    "many missing": (
        lambda net: {"network": {k: v for k, v in net.state_dict().items() if not k.startswith("local_nets")}},
        r"\d+ missing: local_nets\.nets\.0\S+, .* and \d+ more; to list all of them: fercli weights"
        r" inspect FILE -c SPEC$",
    ),
    "squeeze and excite": (
        lambda net: {
            "input_layer.0.weight": torch.zeros(64, 3, 3, 3),
            "body.0.res_layer.2.weight": torch.zeros(64),
            **{f"body.{i}.res_layer.5.fc1.weight": torch.zeros(4, 64, 1, 1) for i in range(8)},
            **{f"body.{i}.shortcut_layer.0.weight": torch.zeros(4, 64, 1, 1) for i in (2, 4, 6)},
        },
        r"the file is an IR-SE-18, but the spec asks for .* \(fercli cannot build the file's backbone\)$",
    ),
    "AGLRLS's MobileNetV2": (
        lambda net: {
            "model": {"Crop_Net.0.0.conv.0.0.weight": torch.zeros(1), "layer1.0.conv.0.0.weight": torch.zeros(1)}
        },
        r"the file is a wide MobileNetV2 \(the released checkpoints'\), but the spec asks .* mobilenet-v2-wide\)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_checkpoints_that_do_not_fit_give_one_line_and_change_nothing(case, small, tmp_path):
    make, message = MISFITS[case]
    path = tmp_path / "file.ckpt"
    torch.save(make(small), path)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    with pytest.raises(FercliError, match=message) as caught:
        load_weights(small, path)
    assert str(path) in str(caught.value) and "do not fit the network" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


def test_wrong_depth_in_the_other_direction(tmp_path):
    with torch.device("meta"):
        network = build_network(model_spec(backbone="ir18"))
    torch.save({"model": hollow("ir50")}, tmp_path / "ir50.pkl")
    with pytest.raises(
        FercliError, match=r"the file is an IR-50, but the spec asks for an IR-18 \(set model.backbone: ir50\)"
    ):
        load_weights(network, tmp_path / "ir50.pkl")
    assert read_weights(tmp_path / "ir50.pkl").description.architecture.blocks == (3, 4, 14, 3)
