"""Exported models compared with evaluation: rules, local features, backbones, methods and batch sizes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from conftest import SLOW_LIMIT_S
from exporting import as_given, evaluated, make_run, prepared_faces, spec_of

import fercli
from fercli.engine.trained import Trained, find_trained
from fercli.errors import FercliError, SpecError
from fercli.export import check
from fercli.export.formats import onnx_bytes, require_onnx, torch_bytes, torch_runner
from fercli.export.graph import OUTPUTS, deploy, require_torch, trace
from fercli.export.write import metadata
from fercli.models import HEADS

SIZES = (1, 3, 8)
#: rule, method, target, and the model section.
CASES = {
    "glpc": ("glpc", "aglrls", "jaffe", {}),
    "agra": ("fused", "agra", "jaffe", {}),
    "source": ("glpc", "aglrls", None, {}),  # a source model has no status: the fused head
    "crops, seven classifiers": ("global+fused", "cglrl", "jaffe", {"local": "image-crop", "classifiers": "separate"}),
    "ir18": ("global+fused", "dann", "jaffe", {"backbone": "ir18"}),
    "mobilenet-v2": ("glpc", "aglrls", "jaffe", {"backbone": "mobilenet-v2"}),
    "mobilenet-v2-wide": ("glpc", "aglrls", "jaffe", {"backbone": "mobilenet-v2-wide"}),
}
SLOW = ("agra", "source", "crops, seven classifiers", "ir18", "mobilenet-v2", "mobilenet-v2-wide")


def trained_as(name: str, folder: Path, prepared: Path) -> Trained:
    rule, method, target, model = CASES[name]
    run = make_run(folder / "mine", spec_of(prepared, method, **model), rule, target)
    return find_trained(run)


def due(trained: Trained, prepared: Path):
    """The target's faces, and the outputs of evaluation for them."""
    faces = prepared_faces(trained.spec, "jaffe")
    return faces, evaluated(trained, faces)


def assert_close(found, expected, count: int) -> None:
    for name, got, want in zip(OUTPUTS, found, expected, strict=True):
        got, want = torch.as_tensor(got), want[:count]
        assert got.shape == want.shape and got.dtype == want.dtype, name
        if got.dtype == torch.int64:
            assert torch.equal(got, want), name
        else:
            assert (got - want).abs().max() <= 1e-4, name


@pytest.mark.timeout(SLOW_LIMIT_S)  # torch's exporters take a minute each on a busy machine
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_exported_models_predict_as_evaluation_does(name: str, tmp_path: Path, prepared: Path) -> None:
    trained = trained_as(name, tmp_path, prepared)
    faces, expected = due(trained, prepared)
    if name == "glpc":
        assert len(set(expected[2].tolist())) == 3  # every stage decides for some faces
    size = trained.spec.prepare.crop_size if trained.spec.model.reads_crops else None
    program, about = trace(deploy(trained), size), metadata(trained, size)

    if name != "agra":  # to save time: only AGRA's ONNX export has special code
        data = torch_bytes(program, about)
        run = torch_runner(data)
        for count in SIZES:
            given = [torch.from_numpy(each) for each in as_given(trained, faces, count).values()]
            assert_close(run(*given), expected, count)
        extra = {"fercli.json": ""}
        torch.export.load(io.BytesIO(data), extra_files=extra)
        assert json.loads(extra["fercli.json"])["source"] == '["raf-db"]'
        assert_no_paths(data)

    if name != "source":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        data = onnx_bytes(program, 18, about)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == list(OUTPUTS)
        assert {each.shape[0] for each in (*session.get_inputs(), *session.get_outputs())} == {"batch"}
        for count in SIZES:
            assert_close(session.run(None, as_given(trained, faces, count)), expected, count)
        told = session.get_modelmeta().custom_metadata_map
        assert json.loads(told["heads"]) == list(HEADS) and told["target"] == "jaffe"
        assert_no_paths(data)


def assert_no_paths(data: bytes) -> None:
    """No path of this machine is in a file that is passed on."""
    for path in (Path(fercli.__file__).parent, Path(torch.__file__).parent):
        assert str(path).encode() not in data


@pytest.mark.parametrize("rule", ["fused", "global+fused", "glpc"])
@pytest.mark.parametrize("method", ["aglrls", "agra"])
@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
def test_the_deployed_module_is_evaluation(rule: str, method: str, local: str, tmp_path: Path, prepared: Path) -> None:
    trained = find_trained(make_run(tmp_path / "mine", spec_of(prepared, method, local=local), rule))
    faces, expected = due(trained, prepared)
    given = [torch.from_numpy(each) for each in as_given(trained, faces, 8).values()]
    with torch.no_grad():
        assert_close(deploy(trained)(*given), expected, 8)


# ---------------------------------------------------------------------------------------------------------- the check


@pytest.fixture(scope="module")
def judged(tmp_path_factory, prepared):
    """A GLPC model, and the outputs of evaluation. Read only."""
    trained = trained_as("glpc", tmp_path_factory.mktemp("judged"), prepared)
    return deploy(trained), due(trained, prepared)[1]


def change(expected, **changes):
    return [changes.get(name, value) for name, value in zip(OUTPUTS, expected, strict=True)]


def test_equal_outputs_pass(judged) -> None:
    deployed, expected = judged
    found = check.judge(deployed, expected, expected, "jaffe", (1, 8))
    assert found.good and (found.probabilities, found.heads, found.answers, found.edge) == (0, 0, 0, 0)
    assert str(found).startswith("42 faces of jaffe in batches of 1, 8: ") and "all predictions equal" in str(found)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a, p, r, h: {"heads": h + 2e-4},
        lambda a, p, r, h: {"probabilities": p + 2e-4},
        lambda a, p, r, h: {"probabilities": p * float("nan")},
        lambda a, p, r, h: {"heads": h * float("nan")},
        lambda a, p, r, h: {"answer": (a + 1) % 7},
        lambda a, p, r, h: {"stage": (r + 1) % 3},
    ],
)
def test_different_outputs_are_not_good(judged, spoil) -> None:
    deployed, expected = judged
    assert not check.judge(deployed, expected, change(expected, **spoil(*expected)), None, (1,)).good


def test_a_face_at_a_threshold_of_the_rule_is_judged_by_its_own_heads(judged) -> None:
    deployed, (_, _, _, heads) = judged
    on = heads[:1].clone()
    top = on[0, 6].argmax()
    exact = 0.95 * ((deployed.status[6, top].double() + 1) / 2) ** 2
    limit = exact.float()
    if limit < exact:  # the smallest float32 that reaches the threshold
        limit = torch.nextafter(limit, torch.tensor(1.0))
    on[0, 6] = (1 - limit) / 6
    on[0, 6, top] = limit
    below = on.clone()
    below[0, 6, top] -= 1e-6
    sides = [deployed.rule(each) for each in (on, below)]
    assert [int(side.stages[0] == 0) for side in sides] == [1, 0]
    outputs = [(s.answers, s.probabilities, s.stages, h) for s, h in zip(sides, (on, below), strict=True)]
    found = check.judge(deployed, *outputs, None, (1,))
    assert found.good and found.edge == 1 and "; 1 at a threshold of the decision rule" in str(found)
    # but not if the decision does not follow from the heads
    assert not check.judge(deployed, outputs[0], (*outputs[1][:3], on), None, (1,)).good


def test_batches_have_several_sizes() -> None:
    assert check._batch_sizes(64) == [1, 3, *[8] * 7, 4]
    assert check._batch_sizes(2) == [1, 1] and check._batch_sizes(1) == [1]


def test_drawn_faces_if_there_is_no_store(tmp_path: Path, prepared: Path) -> None:
    run = make_run(tmp_path / "mine", spec_of(prepared))
    trained = find_trained(run)
    assert check.samples(trained).dataset == "jaffe"
    trained.state["target"] = "nowhere"
    assert check.samples(trained).dataset == "raf-db"
    trained.state["spec"]["paths"]["prepared"] = str(tmp_path / "nothing")
    found = check.samples(trained)
    assert found.dataset is None and found.faces.shape == (14, 140, 140, 3) and found.crops is None
    assert torch.equal(found.faces, check.drawn(trained.spec).faces) and len(found.faces.unique(dim=0)) == 14
    assert (found.landmarks[:, 0, 0] < found.landmarks[:, 1, 0]).all() and (found.landmarks > 14).all()
    trained.state["spec"]["model"]["local"] = "image-crop"
    assert check.samples(trained).crops.shape == (14, 5, 48, 48, 3)


# -------------------------------------------------------------------------------------------------------- requirements


@pytest.mark.parametrize(("version", "enough"), [("2.5.1+cpu", False), ("1.13.0", False), ("2.6.0", True)])
def test_an_old_torch_is_refused(version: str, enough: bool) -> None:
    if enough:
        require_torch(version)
        return
    with pytest.raises(FercliError, match=r"needs torch 2\.6 or newer, but this is .*; pip install -U torch"):
        require_torch(version)


@pytest.mark.parametrize("opset", [-1, 17, 99])
def test_an_opset_that_cannot_be_written_is_refused(opset: int) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(SpecError, match=rf"--opset {opset} cannot be written; give 18 to \d+"):
        require_onnx(opset)
