"""The command `fercli export`, and the model card, whose code is run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SLOW_LIMIT_S, run
from exporting import make_run, prepared_faces, spec_of
from PIL import Image

from fercli.engine.trained import find_trained
from fercli.errors import FercliError
from fercli.export import check
from fercli.export.card import Delivery, card
from fercli.export.graph import deploy
from fercli.export.write import _write
from fercli.expressions import EXPRESSIONS

#: torch's exporters take half a minute each, and several minutes on a busy machine.
pytestmark = pytest.mark.timeout(SLOW_LIMIT_S)

DELIVERY = Delivery("model.onnx", "onnx", 18, 1_000_000, None, "nothing")


@pytest.fixture(scope="module")
def made(tmp_path_factory, prepared) -> Path:
    """A run with an adapted and a source model. Read only."""
    folder = tmp_path_factory.mktemp("made") / "mine"
    make_run(folder, spec_of(prepared), "glpc")
    return make_run(folder, spec_of(prepared), "glpc", target=None)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """The file that `fercli export` wrote, and its result."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path_factory.mktemp("exported") / "new" / "jaffe.onnx"
    result = run("export", made, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out, result


def told(result) -> str:
    """The one line of a failed command."""
    assert result.exit_code in (1, 2) and result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in result.stderr
    return line


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_it_reports_what_it_did_and_nothing_else(exported) -> None:
    out, result = exported
    lines = result.stderr.splitlines()
    assert result.stdout == "" and len(lines) == 4
    assert re.match(r"checked on 42 faces of jaffe in batches of 1, 3, 8, 6: largest difference \S+ in the", lines[1])
    assert "all predictions equal" in lines[1] and "opset 18" in lines[2] and "batches of any size" in lines[2]
    assert sorted(path.name for path in out.parent.iterdir()) == ["jaffe.md", "jaffe.onnx"]


def test_the_file_contains_its_metadata(exported) -> None:
    import onnx

    model = onnx.load(exported[0])
    told_of = {each.key: each.value for each in model.metadata_props}
    assert json.loads(told_of["expressions"]) == list(EXPRESSIONS)
    assert told_of["opset"] == "18" and [each.version for each in model.opset_import if not each.domain] == [18]
    assert told_of["rule"] == "glpc" and told_of["method"] == "aglrls" and told_of["size"] == "112"
    assert np.array(json.loads(told_of["template"])).shape == (5, 2)
    assert model.ir_version == 8 and model.producer_name == "fercli"


def answer_of_the_card(text: str, folder: Path, made: Path, monkeypatch, capsys, target: str = "jaffe") -> None:
    """Run the card's code on a prepared face, and compare the prediction with the model's."""
    trained = find_trained(made, target)
    pixels, landmarks, _ = prepared_faces(trained.spec, "jaffe").gather(np.arange(5, 6))
    monkeypatch.chdir(folder)
    Image.fromarray(pixels[0].numpy()).save("photograph.png")
    np.save("points.npy", landmarks[0].numpy())
    for code in snippets(text):
        exec(compile(code, "card", "exec"), {})
    face = torch.from_numpy(np.array(Image.open("face.png")))[None]
    given = [face, torch.from_numpy(np.load("landmarks.npy")).float()[None]]
    if trained.spec.model.reads_crops:
        given.append(torch.from_numpy(np.load("crops.npy"))[None])
    with torch.no_grad():
        answer, probabilities, _, _ = deploy(trained)(*given)
    printed = capsys.readouterr().out.split(maxsplit=1)
    assert printed[0] == EXPRESSIONS[int(answer)]
    numbers = [float(number) for number in printed[1].strip().strip("[]").split()]
    assert np.allclose(numbers, probabilities[0].numpy(), atol=2e-3)
    margin = (pixels.shape[1] - 112) // 2
    assert (face[0].int() - pixels[0, margin:-margin, margin:-margin].int()).abs().float().mean() < 4


def test_the_code_of_the_card_runs(exported, made, monkeypatch, capsys) -> None:
    out, _ = exported
    text = out.with_suffix(".md").read_text()
    assert len(snippets(text)) == 2
    answer_of_the_card(text, out.parent, made, monkeypatch, capsys)


def test_torch_chosen_by_the_ending_with_json_and_card(made, tmp_path, monkeypatch, capsys) -> None:
    result = run("export", made, "--target", "source", "--out", tmp_path / "source.pt2", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    done = json.loads(result.stdout)["export"]
    assert done["format"] == "torch" and done["opset"] is None and done["batch"] == "any" and not done["card_kept"]
    agreement = done["agreement"]
    assert agreement["faces"] == 64 and agreement["dataset"] == "raf-db" and agreement["batches"] == [1, 3, 8, 4]
    assert agreement["answers"] == 0 and agreement["probabilities"] <= 1e-4
    answer_of_the_card((tmp_path / "source.md").read_text(), tmp_path, made, monkeypatch, capsys, "source")


@pytest.mark.slow
def test_nothing_is_overwritten_without_force_and_an_edited_card_is_kept(made, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, edited = Path("mine-jaffe.pt2"), Path("mine-jaffe.md")
    model.write_bytes(b"mine")
    assert "mine-jaffe.pt2 already exists" in told(run("export", made, "--format", "torch"))
    assert model.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [tmp_path / model]
    model.unlink()
    edited.write_text("edited")
    result = run("export", made, "--format", "torch")
    assert result.exit_code == 0 and "mine-jaffe.md: kept unchanged (--force replaces it)" in result.stderr
    assert edited.read_text() == "edited" and model.stat().st_size > 10_000
    assert run("export", made, "--format", "torch", "--force").exit_code == 0
    assert edited.read_text().startswith("# Model card: mine, raf-db, adapted to jaffe by aglrls")


@pytest.mark.slow
def test_an_export_that_differs_from_the_model_is_not_written(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    line = told(run("export", made, "--out", tmp_path / "new" / "x.pt2"))
    assert "x.pt2 is not written: the export differs from the model" in line and "42 faces of jaffe" in line
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "missing": (["nowhere"], "no such run folder or checkpoint: nowhere; train one: fercli train-source"),
    "empty": (["TMP/empty"], "contains no trained model; run: fercli train-source"),
    "damaged": (["TMP/damaged.ckpt"], "is not a PyTorch checkpoint, or is damaged"),
    "foreign": (["TMP/foreign.ckpt"], "is not a fercli checkpoint and not a released one"),
    "no such target": (["MADE", "--target", "sfew"], "no model adapted to sfew"),
    "below a file": (["MADE", "--out", "TMP/file/x.onnx"], "is not a folder; name another folder"),
    "a folder": (["MADE", "--out", "TMP/empty"], "it is a folder; give the name of a file"),
    "the card": (["MADE", "--out", "TMP/x.md"], "is the name of its model card; give another name, such as x.onnx"),
    "itself": (
        ["MADE", "--out", "MADE/adapt-jaffe/best.ckpt", "--force"],
        "would overwrite the input MADE/adapt-jaffe/best.ckpt",
    ),
    "two formats": (["MADE", "--out", "x.pt2", "--format", "onnx"], "implies --format torch, not onnx"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_a_one_line_error(arguments: list[str], said: str, made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "foreign.ckpt")
    places = {"TMP": str(tmp_path), "MADE": str(made)}
    said, *arguments = (re.sub("TMP|MADE", lambda m: places[m[0]], each) for each in (said, *arguments))
    assert said in told(run("export", *arguments))


def test_without_its_packages_onnx_says_what_to_install(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = told(run("export", made, "--out", tmp_path / "x.onnx"))
    assert 'pip install "fercli[onnx]"' in line and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_an_output_that_cannot_be_written_is_a_one_line_error() -> None:
    with pytest.raises(FercliError, match=r"cannot write /proc/x\.onnx: .*; name another place with --out"):
        _write(Path("/proc/x.onnx"), b"")


# ------------------------------------------------------------------------------------------------------------ the card


def test_the_card_is_complete(exported) -> None:
    text = exported[0].with_suffix(".md").read_text()
    for said in (
        "| source (labelled) | raf-db |",
        "| epoch | 7, chosen by infomax (reads target images) |",
        "| initial weights | random |",
        "| raf-db | source | 84 | procedural faces in its layout † | drawn by fercli: no photographs |",
        "0 surprise, 1 fear, 2 disgust, 3 happiness, 4 sadness, 5 anger, 6 neutral",
        "| `landmarks` | float32 | [batch, 5, 2] |",
        "(38.2946, 51.6963)",
        "ONNX, opset 18",
        "42 faces of jaffe in batches of 1, 3, 8, 6",
        "This model has not been evaluated.",
        "## Limits",
        "## Do not use it for",
    ):
        assert said in text
    assert "`crops`" not in text


def test_the_card_has_the_terms_of_the_data_if_they_are_known(tmp_path, prepared) -> None:
    data = {"source": ["raf-db", "ours"], "datasets": {"ours": {"reader": "folders"}, "jaffe": {"reader": "fer2013"}}}
    trained = find_trained(make_run(tmp_path / "mine", spec_of(prepared, data=data)))
    trained.state["spec"]["paths"]["prepared"] = str(tmp_path / "nothing")
    trained.state["spec"]["model"]["weights"] = "weights/ms1m.pth"
    text = card(trained, DELIVERY)
    assert "| raf-db | source | unknown | web images | non-commercial research; on request |" in text
    assert "| ours | source | unknown | unknown | check the terms |" in text
    assert "| jaffe | target | unknown | web images, 48x48, grey | competition rules" in text
    assert "| initial weights | ms1m.pth, given as model.weights: see its own terms |" in text


def test_the_card_describes_other_alignments_and_crops(tmp_path, prepared) -> None:
    trained = find_trained(make_run(tmp_path / "mine", spec_of(prepared, local="image-crop"), "fused"))
    trained.state["spec"]["prepare"]["align"] = "box"
    text = card(trained, DELIVERY._replace(crop_size=48))
    assert (
        "| `crops` | uint8 | [batch, 5, 48, 48, 3] |" in text
        and "is resized to 112 x 112 pixels with Pillow's bilinear" in text
    )
    assert "box_matrix(released_box(box_of_points(points), photograph.shape[1::-1]), size=112, margin=0)" in text
    assert '"crops": crops[None]' in text
    assert "| decision rule | fused: " in text and "0: this rule has one stage" in text


def test_the_card_marks_a_method_that_used_target_labels(tmp_path, prepared) -> None:
    trained = find_trained(make_run(tmp_path / "mine", spec_of(prepared, "cglrl-oracle"), "fused"))
    assert "it used the target's labels; an upper bound, not a result" in card(trained, DELIVERY)


ENTRY = {
    "dataset": "jaffe",
    "epoch": 7,
    "stage": "adapt",
    "method": "aglrls",
    "scored": 40,
    "expected": 42,
    "decision": "glpc",
    "heads": {"glpc": {"accuracy": 0.5, "macro_f1": None}},
}


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, "| jaffe † | 40 of 42 | 50.00 | not defined |"),
        ({"folder": "adapt-jaffe"}, "| jaffe † | 40 of 42 | 50.00 | not defined |"),
        (
            {"intervals": {"accuracy": [0.4, 0.6], "macro_f1": None}},
            "| jaffe † | 40 of 42 | 50.00 [40.00, 60.00] | not defined |",
        ),
        ({"heads": {"glpc": None}}, "| jaffe † | 40 of 42 | not defined | not defined |"),
        ({"folder": "adapt-jaffe-other"}, None),
        ({"method": "dann"}, None),
        ({"epoch": 6}, None),  # from an older training
    ],
)
def test_figures_belong_to_this_model(changes, row, made, tmp_path) -> None:
    trained = find_trained(made)
    results = {"datasets": {"jaffe": {"synthetic": True}}, "entries": [{**ENTRY, **changes}]}
    moved = type(trained)(tmp_path / "adapt-jaffe" / "best.ckpt", trained.state)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(json.dumps(results))
    text = card(moved, DELIVERY)
    assert (row in text) if row else ("This model has not been evaluated." in text)


@pytest.mark.parametrize("content", ["{", "[]", '{"entries": 3}', '{"entries": [{}]}'])
def test_a_damaged_report_is_ignored(content, made, tmp_path) -> None:
    trained = find_trained(made)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(content)
    moved = type(trained)(tmp_path / "adapt-jaffe" / "best.ckpt", trained.state)
    assert "This model has not been evaluated." in card(moved, DELIVERY)
