"""`fercli weights`: what it reports about a file, and our checkpoints converted to other formats and back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import run, told
from tiny import model_spec
from torch.serialization import get_unsafe_globals_in_checkpoint

from fercli.engine import checkpoint
from fercli.errors import FercliError
from fercli.export.weights import FORMATS, export, find_checkpoint
from fercli.models.build import build_network
from fercli.models.heads import HEADS
from fercli.models.names import to_published_names
from fercli.models.weights import load_weights
from fercli.spec import parse

STATUS = torch.arange(49.0).view(7, 7) / 49


def save_ours(path: Path, network=None, method: str = "aglrls", **changes) -> dict[str, torch.Tensor]:
    """Write a checkpoint of an adaptation to JAFFE as the engine does; return the network's state."""
    if network is None:
        torch.manual_seed(0)
        network = build_network(model_spec(**changes))
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1234)
    model = {"backbone": "ir-small", "width": 8, **changes}
    state = {
        "network": network.state_dict(),
        "status": None if method == "source-only" else STATUS.clone(),
        "decision": "glpc",
        "step": 70,
        "epoch": 7,
        "best": {"epoch": 7, "score": 1.25, "rule": "infomax"},
        "kind": "fercli",
        "stage": "adapt",
        "spec": parse({"name": "mine", "model": model}).model_dump(mode="json"),
        "target": "jaffe",
        "method_name": method,
    }
    checkpoint.save(path, state)
    return network.state_dict()


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """One of our checkpoints, small. Read only."""
    path = tmp_path_factory.mktemp("ours") / "best.ckpt"
    save_ours(path)
    return path


def reloaded(path: Path, network) -> dict[str, torch.Tensor]:
    """The network's state after loading; every number of it was wrong before."""
    for tensor in network.state_dict().values():
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)
    load_weights(network, path)
    return network.state_dict()


# -------------------------------------------------------------------------------------------------- export and back


@pytest.fixture(scope="module", params=["ir18", "mobilenet-v2", "mobilenet-v2-wide", "ir-small", "ir-lite"])
def exported(request, tmp_path_factory):
    """Name, checkpoint, its state, and another network to load into, channels-last as the engine trains it."""
    torch.manual_seed(0)
    network = build_network(model_spec(backbone=request.param)).to(memory_format=torch.channels_last)
    path = tmp_path_factory.mktemp("export") / "best.ckpt"
    state = save_ours(path, network, backbone=request.param)
    with torch.device("meta"):
        other = build_network(model_spec(backbone=request.param))
    return request.param, path, state, other.to_empty(device="cpu")


HOLDS = {
    "aglrls": ({"ir18", "mobilenet-v2-wide"}, lambda key: True),
    "face-evolve": ({"ir18"}, lambda key: key.startswith("backbone.")),
    "torchvision": ({"mobilenet-v2"}, lambda key: key.startswith("backbone.features.")),
    "fercli": ({"ir18", "mobilenet-v2", "mobilenet-v2-wide", "ir-small", "ir-lite"}, lambda key: True),
}


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_exported_comes_back_bit_for_bit_or_is_refused(exported, kind, ending, tmp_path):
    name, path, state, other = exported
    networks, holds = HOLDS[kind]
    out = tmp_path / f"out{ending}"
    if name not in networks:
        with pytest.raises(FercliError, match=rf"cannot be exported as {kind}: the format is for .*, but this is an? "):
            export(path, out, kind)
        assert list(tmp_path.iterdir()) == []
        return
    done = export(path, out, kind)
    now = reloaded(out, other)
    due = {key: value for key, value in state.items() if holds(key)}
    assert done.tensors == len(due) and done.numbers == sum(value.numel() for value in due.values())
    assert all(torch.equal(now[key], value) and now[key].dtype == value.dtype for key, value in due.items())
    assert sum(key.endswith("num_batches_tracked") and int(now[key]) == 1234 for key in due) >= 20
    assert all((now[key] == -1).all() for key in now if key.endswith("num_batches_tracked") and key not in due)
    assert list(tmp_path.iterdir()) == [out]
    if ending == ".pth":
        assert get_unsafe_globals_in_checkpoint(out) == []


def zeroed_ir18():
    with torch.device("meta"):
        network = build_network(model_spec(backbone="ir18"))
    network = network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()
    return network


def test_the_aglrls_file_has_the_published_layout(tmp_path):
    network = zeroed_ir18()
    save_ours(tmp_path / "best.ckpt", network, backbone="ir18")
    out = run("weights", "export", tmp_path / "best.ckpt", tmp_path / "new" / "jaffe.pkl")
    assert out.exit_code == 0 and out.stdout == "" and "467 tensors, 65.46 M values" in out.stderr
    document = torch.load(tmp_path / "new" / "jaffe.pkl", weights_only=True)
    assert list(document) == ["epoch", "classwise", "model"] and document["epoch"] == 7
    assert isinstance(document["classwise"], list) and torch.equal(torch.stack(document["classwise"]), STATUS)
    assert set(document["model"]) == set(to_published_names(network.state_dict()))
    (told_of,) = json.loads(run("weights", "inspect", tmp_path / "new" / "jaffe.pkl", "--json").stdout)["weights"]
    assert torch.equal(torch.tensor(told_of["class_status"]), STATUS) and told_of["epoch"] == 7


def test_a_checkpoint_without_b_says_so(tmp_path):
    save_ours(tmp_path / "best.ckpt", zeroed_ir18(), method="source-only", backbone="ir18")
    done = export(tmp_path / "best.ckpt", tmp_path / "a.pkl")
    assert done.left_out == ("classwise: the checkpoint has no learning status b",)
    assert list(torch.load(tmp_path / "a.pkl", weights_only=True)) == ["epoch", "model"]


def test_our_own_format_is_a_checkpoint_that_can_be_used_but_not_resumed(trained, tmp_path):
    last, out = trained.runs / "source" / "last.ckpt", tmp_path / "out.ckpt"
    done = export(last, out, "fercli")
    before, after = checkpoint.load(last), checkpoint.load(out)
    assert set(before) - set(after) == {"optimizer", "meter", "rng"}
    assert after["spec"] == before["spec"] and after["best"] == before["best"]
    assert "needed only to resume training" in done.left_out[0]
    network = build_network(model_spec(width=4, weights=out))
    assert all(torch.equal(value, before["network"][key]) for key, value in network.state_dict().items())


CANNOT = {
    "separate classifiers": ({"classifiers": "separate"}, "three classifiers, but this network has seven"),
    "patch stems": ({"local": "image-crop"}, "no patch stems"),
    "a small net": ({}, "for IR-50, IR-18 and mobilenet-v2-wide, but this is a small IR-10 of width 8"),
    "a method with networks of its own": ({"method": "agra"}, "cannot store the networks of agra, which"),
    "all of it": ({"local": "image-crop", "classifiers": "separate"}, "is a small IR-10 .*; .* seven .*; .* stems"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_the_published_format_cannot_hold_is_refused_in_one_line(case, tmp_path):
    changes, message = CANNOT[case]
    save_ours(tmp_path / "best.ckpt", **changes)
    with pytest.raises(FercliError, match=f"best.ckpt cannot be exported as aglrls: .*{message}") as caught:
        export(tmp_path / "best.ckpt", tmp_path / "out.pkl")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.pkl").exists()
    assert export(tmp_path / "best.ckpt", tmp_path / "out.ckpt", "fercli").left_out == ()


def test_an_export_overwrites_nothing_unless_forced(ours, tmp_path):
    out = tmp_path / "out.ckpt"
    out.write_text("precious")
    arguments = ("weights", "export", ours, out, "--format", "fercli")
    assert "out.ckpt already exists; name another file, or replace it with --force" in told(run(*arguments))
    assert out.read_text() == "precious"
    assert run(*arguments, "--force").exit_code == 0
    assert torch.equal(checkpoint.load(out)["status"], STATUS)
    before = ours.read_bytes()
    assert "would overwrite the input" in told(run("weights", "export", ours, ours, "--format", "fercli", "--force"), 2)
    assert ours.read_bytes() == before
    assert "is a folder; give the name of a file" in told(run("weights", "export", ours, tmp_path, "--force"))


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_a_full_disk_leaves_the_old_file(ours, tmp_path, ending):
    resource = pytest.importorskip("resource")
    out = tmp_path / f"out{ending}"
    out.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FercliError, match="the disk is full while writing"):
            export(ours, out, "fercli", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]


def test_a_file_where_a_folder_should_be(ours, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FercliError, match="cannot write"):
        export(ours, tmp_path / "file" / "out.ckpt", "fercli")


def test_the_checkpoint_that_a_folder_means(ours, tmp_path):
    run_folder = tmp_path / "runs" / "mine"
    for stage in ("source", "adapt-jaffe"):
        (run_folder / stage).mkdir(parents=True)
    with pytest.raises(FercliError, match=r"contains no best\.ckpt; give a checkpoint, or the folder of a run's stage"):
        find_checkpoint(run_folder)
    (run_folder / "source" / "best.ckpt").write_bytes(ours.read_bytes())
    assert find_checkpoint(run_folder) == find_checkpoint(run_folder / "source") == run_folder / "source" / "best.ckpt"
    (run_folder / "adapt-jaffe" / "best.ckpt").write_bytes(ours.read_bytes())
    with pytest.raises(FercliError, match=r"contains 2 checkpoints \(adapt-jaffe, source\); give one of these folders"):
        find_checkpoint(run_folder)
    out = tmp_path / "out.safetensors"
    result = run("weights", "export", run_folder / "adapt-jaffe", out, "--format", "fercli", "--json")
    (told_of,) = json.loads(result.stdout).values()
    assert told_of["path"] == str(out) and "they belong to the machine that trained it" in told_of["left_out"][0]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"model": {"input_layer.0.weight": torch.ones(1), "layer1.0.x": torch.ones(1)}}, "is not a fercli checkpoint"),
        ({"network": {"backbone.stem.0.weight": torch.ones(1)}}, "unknown architecture"),
        (None, "2 missing: classifiers.0.weight, classifiers.0.bias"),
    ],
)
def test_only_whole_checkpoints_of_ours_are_exported(document, message, ours, tmp_path):
    if document is None:
        network = checkpoint.load(ours)["network"]
        document = {"network": {k: v for k, v in network.items() if not k.startswith("classifiers.0.")}}
    torch.save(document, tmp_path / "a.ckpt")
    assert message in told(run("weights", "export", tmp_path / "a.ckpt", tmp_path / "out", "--format", "fercli"))


# ---------------------------------------------------------------------------------------------------------- inspect


def test_inspect_reports_everything_about_our_checkpoint(ours):
    result = run("weights", "inspect", ours)
    assert result.exit_code == 0 and result.stderr == ""
    text = " ".join(result.stdout.split())
    for part in (
        f"{ours} fercli checkpoint network a small IR-10 of width 8 (blocks 1-1-1-1), local features from feature-map",
        "trained run mine, adapt stage, aglrls raf-db -> jaffe, epoch 7, chosen by infomax (1.25), decision rule glpc",
        "fills backbone, global_head, local_nets, classifiers initial weights none complete yes",
        "learning status b",
        *HEADS,
    ):
        assert part in text


def test_inspect_reads_what_the_engine_writes(trained):
    result = run("weights", "inspect", trained.runs / "source" / "last.ckpt", "-c", trained.spec, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    (told_of,) = json.loads(result.stdout)["weights"]
    record = told_of["record"]
    assert (record["run"], record["stage"], record["source"]) == ("tiny", "source", ["raf-db"])
    assert (record["method"], record["selection"]) == ("source-only", "source-val") and "target" not in record
    assert 0 <= record["score"] <= 1 and told_of["epoch"] == 2
    assert {"optimizer", "rng"} <= {entry["name"] for entry in told_of["left_over"]}
    assert told_of["spec"] == {"name": "tiny", "fits": True, "misfits": []}
    assert told_of["misfits"] == [] and told_of["first_weights"] == [] and told_of["class_status"] is None


def test_inspect_of_several_files_reports_each_and_fails_for_one(ours, tmp_path):
    bad, text = tmp_path / "bad.ckpt", tmp_path / "text.txt"
    network = build_network(model_spec()).state_dict()
    agra = to_published_names({key: value for key, value in network.items() if not key.startswith("classifiers.")})
    torch.save(agra | {"fc.weight": torch.ones(7, 384)}, bad)
    text.write_text("no checkpoint at all")
    result = run("weights", "inspect", ours, text, bad, "--set", "model.backbone=ir-small", "--set", "model.width=8")
    assert result.exit_code == 1 and "text.txt: is not a PyTorch checkpoint" in result.stderr
    found = " ".join(result.stdout.split())
    assert found.count("spec fits baseline") == 2
    assert "unused fc.* (1 tensor): AGRA's classifier" in found and "initial weights classifiers" in found
    as_json = run("weights", "inspect", ours, text, "--json")
    first, second = json.loads(as_json.stdout)["weights"]
    assert first["kind"] == "fercli" and set(second) == {"file", "error"} and as_json.exit_code == 1
    assert "is not a PyTorch checkpoint" in told(run("weights", "inspect", text))
    assert told(run("weights", "inspect", text, "--json"))


def test_inspect_names_every_misfit_at_once(ours, tmp_path):
    state = checkpoint.load(ours)["network"]
    changed = {key: value for key, value in state.items() if not key.startswith("local_nets.nets.3.")}
    changed["classifiers.0.bias"] = torch.full((7,), float("nan"))
    changed["classifiers.1.bias"] = torch.zeros(8)
    changed["more\x1b[2J"] = torch.zeros(1)
    torch.save({"network": changed}, tmp_path / "a.ckpt")
    settings = ("--set", "model.backbone=ir-small", "--set", "model.width=8")
    arguments = ("weights", "inspect", tmp_path / "a.ckpt", *settings)
    result = run(*arguments)
    assert result.exit_code == 1 and result.stderr == "" and "\x1b" not in result.stdout
    text = "".join(result.stdout.split())
    gone = [key for key in state if key.startswith("local_nets.nets.3.") and "tracked" not in key]
    assert len(gone) == 52 and all(key in text for key in gone)
    for part in ("1unexpected:more\\x1b[2J", "classifiers.1.biasis[8],not[7]", "infinitenumbers:classifiers.0.bias"):
        assert part in text
    (told_of,) = json.loads(run(*arguments, "--json").stdout)["weights"]
    assert [it["what"] for it in told_of["spec"]["misfits"]] == [it["what"] for it in told_of["misfits"]]
    assert [len(it["names"]) for it in told_of["misfits"]] == [len(gone), 1, 1, 1]


@pytest.mark.parametrize(
    ("setting", "fits"),
    [
        (
            "model.backbone=ir18",
            "does not fit baseline: the file is a small IR-10 of width 8, but the spec asks for an IR-18",
        ),
        ("model.classifiers=separate", "the file has model.classifiers: shared, but the spec asks for separate"),
    ],
)
def test_inspect_reports_that_the_spec_asks_for_another_network(ours, setting, fits):
    result = run("weights", "inspect", ours, "--set", setting)
    assert result.exit_code == 1 and fits in " ".join(result.stdout.split())


def test_inspect_of_a_backbone_reports_what_keeps_its_initial_weights(tmp_path):
    network = build_network(model_spec(backbone="mobilenet-v2"))
    save_ours(tmp_path / "best.ckpt", network, backbone="mobilenet-v2")
    export(tmp_path / "best.ckpt", tmp_path / "m.pth", "torchvision")
    (told_of,) = json.loads(run("weights", "inspect", tmp_path / "m.pth", "--json").stdout)["weights"]
    new = ["backbone.project_local", "backbone.project_global", "global_head", "local_nets", "classifiers"]
    assert (told_of["kind"], told_of["fills"], told_of["first_weights"]) == ("torchvision", ["backbone"], new)
    assert told_of["misfits"] == [] and told_of["architecture"]["model"]["backbone"] == "mobilenet-v2"
    arguments = ("--set", "model.backbone=mobilenet-v2", "--set", "model.local=image-crop", "--json")
    (told_of,) = json.loads(run("weights", "inspect", tmp_path / "m.pth", *arguments).stdout)["weights"]
    assert told_of["spec"]["fits"] and "patch_stems" in told_of["first_weights"]


def test_a_hostile_file_is_reported_in_one_line(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"network": {}, "spec": Hostile()}, tmp_path / "best.ckpt")
    for arguments in (("inspect", tmp_path / "best.ckpt"), ("export", tmp_path, tmp_path / "out")):
        assert "asks to run code" in told(run("weights", *arguments))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
