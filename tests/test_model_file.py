"""A whole model in one safetensors file: round trips, what is left out, and files that have changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fercli, run
from exporting import evaluated, make_run, prepared_faces, spec_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import model_spec

from fercli.engine import checkpoint
from fercli.engine.trained import Trained, find_trained
from fercli.errors import FercliError
from fercli.export.weights import export
from fercli.models import build_network
from fercli.models.model_file import Record, digest_of, holds_model, read_model
from fercli.spec import Spec, parse


@pytest.fixture(scope="module")
def stage(prepared, tmp_path_factory) -> Path:
    """The stage folder of a model adapted with AGLRLS, with the decision rule GLPC. Read only."""
    return make_run(tmp_path_factory.mktemp("made") / "mine", spec_of(prepared)) / "adapt-jaffe"


@pytest.fixture(scope="module")
def packed(stage, tmp_path_factory) -> Path:
    """Its model file, as float32. Read only."""
    out = tmp_path_factory.mktemp("packed") / "model.safetensors"
    export(stage, out, "fercli")
    return out


def same_but_for_rounding(one: Trained, other: Trained, prepared: Path, most: float) -> None:
    faces = prepared_faces(one.spec.model_copy(update={"paths": spec_of(prepared).paths}), "jaffe")
    for a, b in zip(evaluated(one, faces)[1::2], evaluated(other, faces)[1::2], strict=True):
        assert float((a - b).abs().max()) <= most


# ---------------------------------------------------------------------------------------------------------- round trips


def test_float32_comes_back_bit_for_bit(stage, packed, prepared) -> None:
    before, after = find_trained(stage), find_trained(packed)
    for name, value in before.state["network"].items():
        assert torch.equal(value, after.state["network"][name]) and value.dtype == after.state["network"][name].dtype
    assert torch.equal(before.state["status"], after.state["status"])
    told = ("stage", "target", "method", "registered", "decision")
    assert [getattr(before, name) for name in told] == [getattr(after, name) for name in told]
    assert after.state["best"] == before.state["best"] and after.rule.threshold == before.rule.threshold
    assert after.folder == packed and before.folder == stage
    same_but_for_rounding(before, after, prepared, 0)
    assert find_trained(str(packed), "jaffe").path == packed
    with pytest.raises(FercliError, match=r"is adapted to jaffe, not a model for ck\+"):
        find_trained(packed, "ck+")


def test_float16_is_half_the_size_and_nearly_the_same(stage, packed, prepared, tmp_path) -> None:
    out = tmp_path / "half.safetensors"
    assert run("weights", "export", stage, out, "--format", "fercli", "--half").exit_code == 0
    assert out.stat().st_size < 0.56 * packed.stat().st_size
    stored, whole = load_file(out), find_trained(stage).state["network"]
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}
    assert all(torch.equal(stored[name], value) for name, value in whole.items() if "num_batches" in name)
    after = find_trained(out)
    assert all(value.dtype in (torch.float32, torch.int64) for value in after.state["network"].values())
    assert torch.equal(after.state["status"], find_trained(stage).state["status"])  # b is not a weight
    same = find_trained(stage)
    rule = [t._replace(name="fused") for t in (same.rule, after.rule)]  # GLPC is discontinuous at its thresholds
    faces = prepared_faces(spec_of(prepared), "jaffe")
    heads = [evaluated(t, faces)[3] for t in (same, after)]
    assert float((rule[0](heads[0]).probabilities - rule[1](heads[1]).probabilities).abs().max()) < 0.02


@pytest.mark.parametrize("kind", ["aglrls", "face-evolve", "torchvision", "fercli"])
def test_half_of_any_format_and_container(kind, tmp_path) -> None:
    torch.manual_seed(0)
    backbone = {"torchvision": "mobilenet-v2", "fercli": "ir-small"}.get(kind, "ir18")
    network = build_network(model_spec(backbone=backbone)).state_dict()
    spec = parse({"model": {"backbone": backbone, "width": 8}}).model_dump(mode="json")
    best = {"epoch": 1, "score": 0.5, "rule": "source-val"}
    state = {"network": network, "spec": spec, "stage": "source", "decision": "fused", "best": best, "status": None}
    checkpoint.save(tmp_path / "best.ckpt", state)
    for ending in ("pth", "safetensors"):
        export(tmp_path / "best.ckpt", tmp_path / f"out.{ending}", kind, half=True)
        other = build_network(model_spec(backbone=backbone, weights=tmp_path / f"out.{ending}")).state_dict()
        first = "backbone.features.0.0.weight" if kind == "torchvision" else "backbone.stem.0.weight"
        first = first if first in network else next(name for name in network if name.startswith("backbone."))
        assert torch.equal(other[first], network[first].half().float())


def test_a_methods_own_networks_are_in_the_file(prepared, tmp_path) -> None:
    made = make_run(tmp_path / "mine", spec_of(prepared, "agra"), "fused")
    out = tmp_path / "agra.safetensors"
    done = export(made / "adapt-jaffe", out, "fercli")
    before, after = find_trained(made), find_trained(out)
    assert done.tensors == len(before.state["network"]) < len(load_file(out))
    same_but_for_rounding(before, after, prepared, 0)
    state = checkpoint.load(made / "adapt-jaffe/best.ckpt")
    del state["method"]
    checkpoint.save(tmp_path / "less.ckpt", state)
    with pytest.raises(FercliError, match="cannot be exported as one file: it has no state of agra's networks"):
        export(tmp_path / "less.ckpt", tmp_path / "b.safetensors", "fercli")


def test_the_file_serves_wherever_a_model_or_weights_are_named(packed, tmp_path) -> None:
    network = build_network(model_spec(width=4, weights=packed)).state_dict()
    assert all(torch.equal(value, network[name]) for name, value in read_model(packed)["network"].items())
    (found,) = json.loads(run("weights", "inspect", packed, "--json").stdout)["weights"]
    record = found["record"]
    assert (record["stage"], record["target"], record["method"], record["decision"]) == (
        *("adapt", "jaffe", "aglrls", "glpc"),
    )
    assert found["misfits"] == [] and found["first_weights"] == [] and len(found["class_status"]) == 7
    assert found["epoch"] == 7 and found["mflop"] == pytest.approx(11.87, abs=0.01) and "starter" not in found
    assert export(packed, tmp_path / "back.ckpt", "fercli").tensors == found["tensors"]
    assert find_trained(tmp_path / "back.ckpt").target == "jaffe"
    assert export(packed, tmp_path / "again.safetensors", "fercli").path.read_bytes() == packed.read_bytes()
    renamed = tmp_path / "renamed.bin"
    shutil.copy(packed, renamed)
    assert find_trained(renamed).decision == "glpc"


# ----------------------------------------------------------------------------------------------------- what is left out


def test_nothing_about_the_training_machine_is_in_the_file(tmp_path, prepared) -> None:
    secret = str(tmp_path / "home-of-somebody")
    spec = spec_of(prepared, data={"datasets": {"raf-db": {"reader": "raf-db", "root": secret}}}).model_dump(
        mode="json"
    )
    spec["data"]["datasets"]["ours"] = {"reader": "csv", "root": secret, "options": {"pixels": secret}}
    spec["paths"] = {name: f"{secret}/{name}" for name in ("data", "prepared", "runs")}
    spec["prepare"] |= {"backend": "dask", "cluster": f"tcp://{secret}:8786"}
    spec["sweep"] = {"methods": ["dann"], "grid": {"data.datasets.ours.root": [secret]}}
    spec["model"]["weights"] = f"{secret}/ms1m.pth"
    made = make_run(tmp_path / "mine", spec_of(prepared))
    state = checkpoint.load(made / "adapt-jaffe/best.ckpt")
    checkpoint.save(tmp_path / "a.ckpt", {**state, "spec": spec, "optimizer": {"where": secret}})
    out = tmp_path / "a.safetensors"
    done = export(tmp_path / "a.ckpt", out, "fercli")
    data = out.read_bytes()
    assert secret.encode() not in data and str(prepared).encode() not in data and b"home-of" not in data
    left = find_trained(out).spec
    assert left.paths == Spec().paths and left.data.datasets["ours"].reader == "csv" and left.sweep is None
    assert left.model.weights == Path("ms1m.pth") and left.data.source == ["raf-db"] and left.adapt.method == "aglrls"
    assert any("belong to the machine that trained it" in text for text in done.left_out)


# ----------------------------------------------------------------------------------------------- files that have
# changed


def rewritten(path: Path, out: Path, metadata: Callable[[dict], dict] = dict, tensors: Callable = dict) -> None:
    with safe_open(path, "pt") as file:
        told = dict(file.metadata())
    save_file(tensors(load_file(path)), out, metadata(told))


def recorded(**changes):
    """Change entries of the record."""

    def change(metadata: dict) -> dict:
        record = {**json.loads(metadata["fercli.record"]), **changes}
        return {**metadata, "fercli.record": json.dumps({k: v for k, v in record.items() if v != "gone"})}

    return change


def bent(state: dict) -> dict:
    name = next(iter(state))
    return {**state, name: state[name] + 1}


EDITED = {
    "no mark": (lambda m: {"format": "pt"}, dict, "contains only tensors, not a whole model; start a training from"),
    "newer": (lambda m: {**m, "fercli.format": "9"}, dict, "was written by a newer fercli (format 9) than this one"),
    "odd format": (lambda m: {**m, "fercli.format": "\x1b[2J"}, dict, "its metadata has format \\x1b[2J"),
    "no record": (lambda m: {"fercli.format": "1"}, dict, "its metadata has no record"),
    "no JSON": (lambda m: {**m, "fercli.record": "{"}, dict, "its metadata has no record"),
    "deep JSON": (lambda m: {**m, "fercli.record": "[" * 100_000}, dict, "its metadata has no record"),
    "a list": (lambda m: {**m, "fercli.record": "[1]"}, dict, "its metadata has no record"),
    "no stage": (recorded(stage="gone"), dict, "stage: "),
    "stage": (recorded(stage="x"), dict, "stage: 'x' is not allowed; choose one of 'source', 'adapt'"),
    "decision": (recorded(decision="best"), dict, "decision: 'best' is not allowed"),
    "status of six": (recorded(status=[[0.5] * 7] * 6), dict, "status: "),
    "status above 1": (recorded(status=[[1.5] * 7] * 7), dict, "status.0.0: 1.5"),
    "status NaN": (recorded(status=[[float("nan")] * 7] * 7), dict, "status.0.0: "),
    "rule": (
        recorded(best={"epoch": 1, "score": 1, "rule": "luck"}),
        dict,
        "best.rule: 'luck' is not a selection rule",
    ),
    "epoch": (recorded(best={"epoch": -1, "score": 1, "rule": "last"}), dict, "best.epoch: -1"),
    "method": (recorded(method_name="magic"), dict, "method_name: 'magic' is not a method"),
    "no target": (recorded(target="gone"), dict, "stage adapt needs a target"),
    "unknown key": (recorded(more=1), dict, "more: unknown key"),
    "spec": (recorded(spec={"model": {"width": 1000}}), dict, "spec: model.width: 1000"),
    "spec's key": (recorded(spec={"modle": {}}), dict, "spec: modle: unknown key (did you mean model?)"),
    "spec of a number": (recorded(spec=3), dict, "spec: 3"),
    "digest": (recorded(digest="0" * 64), dict, "its tensors have changed since it was written"),
    "weights": (dict, bent, "is damaged or was edited: its tensors have changed since it was written"),
    "a tensor less": (dict, lambda s: dict(list(s.items())[1:]), "its tensors have changed since it was written"),
    "a tensor more": (dict, lambda s: {**s, "x": torch.ones(1)}, "its tensors have changed since it was written"),
}


@pytest.mark.parametrize("case", EDITED)
def test_an_edited_file_is_one_line(case, packed, tmp_path) -> None:
    metadata, tensors, said = EDITED[case]
    path = tmp_path / "edited.safetensors"
    rewritten(packed, path, metadata, tensors)
    with pytest.raises(FercliError) as problem:
        find_trained(path)
    told = str(problem.value)
    assert said in told and str(path) in told and "\n" not in told and told.isprintable() and len(told) < 900


DAMAGED = {
    "cut": lambda data: data[: len(data) // 2],
    "cut in the header": lambda data: data[:100],
    "eight bytes": lambda data: data[:8],
    "nothing": lambda data: b"",
    "longer": lambda data: data + b"more",
    "other bytes": lambda data: bytes(range(256)) * 40,
    "a huge header": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "a page": lambda data: b"<!DOCTYPE html><title>404</title>",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line(case, packed, tmp_path) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(DAMAGED[case](packed.read_bytes()))
    assert not holds_model(path)
    with pytest.raises(FercliError, match=r"damaged\.safetensors is truncated, damaged or not a safetensors file"):
        find_trained(path)
    result = run("weights", "inspect", path)
    assert result.exit_code == 1 and len(result.stderr.strip().splitlines()) == 1


def test_a_flipped_byte_is_a_line_or_changes_no_weight(packed, tmp_path) -> None:
    """In the header, the record or a weight: never a traceback, and never other weights."""
    data, path = packed.read_bytes(), tmp_path / "flipped.safetensors"
    generator = np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    for at in [*generator.integers(0, header, 60), *generator.integers(header, len(data), 20)]:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << generator.integers(8))]) + data[at + 1 :])
        try:
            found = find_trained(path)
        except FercliError as problem:
            assert "\n" not in str(problem)
        else:  # a letter of a text that is only printed, such as a name
            assert digest_of(found.state["network"]) == digest_of(read_model(packed)["network"])


def test_files_of_others_are_distinguished_from_ours(tmp_path, packed) -> None:
    save_file({"fc.weight": torch.zeros(7, 512)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FercliError, match="with unknown names"):
        find_trained(tmp_path / "foreign.safetensors")
    bare = tmp_path / "bare.safetensors"  # as written by an older fercli
    save_file(load_file(packed), bare)
    done = export(bare, tmp_path / "out.safetensors", "fercli")
    assert "contains only tensors" in done.left_out[0] and not holds_model(tmp_path / "out.safetensors")
    assert not holds_model(tmp_path) and not holds_model(tmp_path / "none.safetensors")


def test_numbers_beyond_float16_are_refused(stage, tmp_path) -> None:
    state = checkpoint.load(stage / "best.ckpt")
    name = "global_head.norm.running_var" if "global_head.norm.running_var" in state["network"] else None
    name = name or next(key for key in state["network"] if key.endswith("running_var"))
    state["network"][name] = state["network"][name] + 1e6
    checkpoint.save(tmp_path / "a.ckpt", state)
    with pytest.raises(FercliError, match=rf"float16, whose largest number is 65504: {name} has larger numbers"):
        export(tmp_path / "a.ckpt", tmp_path / "a.safetensors", "fercli", half=True)
    assert not (tmp_path / "a.safetensors").exists()
    export(tmp_path / "a.ckpt", tmp_path / "a.safetensors", "fercli")


def test_the_record_is_as_documented(packed) -> None:
    with safe_open(packed, "pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "fercli.format", "fercli.record"} and metadata["fercli.format"] == "1"
    assert set(json.loads(metadata["fercli.record"])) == set(Record.model_fields)


def test_the_command_predicts_with_a_file(packed, faces, tmp_path) -> None:
    from PIL import Image

    Image.fromarray(faces[3].image).save(tmp_path / "a.png")
    done = fercli("predict", tmp_path / "a.png", "--run", packed, "--device", "cpu")
    assert done.returncode == 0 and "starter" not in done.stderr
    assert len(json.loads(done.stdout)["faces"]) == 1
