"""Checkpoints that the authors of AGLRLS, CGLRL and AGRA released: scored by one command, as their code predicts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import loops
import numpy as np
import pytest
import torch
from conftest import Bench, lines, run, told
from exporting import prepared_faces, spec_of
from PIL import Image
from released_files import (
    STATUS,
    aglrls,
    agra,
    agra_answer,
    agra_extras,
    fill,
    hollow,
    names_and_shapes,
    network_of,
)
from safetensors.torch import save_file
from stores import cut, seal
from tiny import model_spec
from torch import Tensor

from fercli.engine.data import view_settings
from fercli.engine.trained import find_trained
from fercli.errors import FercliError
from fercli.evaluation.decision import DecisionRule
from fercli.evaluation.published import published_rows
from fercli.expressions import EXPRESSIONS
from fercli.loading.augment import View
from fercli.methods.agra import AGRA
from fercli.methods.agra_released import from_published
from fercli.methods.graph import inter_edges, intra_edges
from fercli.models import FEATURE_SIZE, HEADS, GlobalLocal, Output
from fercli.models.build import build_network
from fercli.models.names import from_published_names, to_published_names
from fercli.predict.recognizer import Recognizer
from fercli.spec import Adapt, Spec

FROZEN = json.loads((Path(__file__).parent / "fixtures/released.json").read_text())
FACES = 8


# Against numbers of the released code


@torch.no_grad()
def test_the_released_mobilenet_computes_what_its_code_computes() -> None:
    network = build_network(model_spec(backbone="mobilenet-v2-wide")).eval()
    state = to_published_names(network.state_dict())
    assert names_and_shapes(state) == FROZEN["wide"]["names"]
    given = fill(state)
    shared = {name for name in given if name.startswith("Crop_Net.") and not name.split(".")[2].startswith("7")}
    given |= {name: given[".".join(["Crop_Net.4", *name.split(".")[2:]])] for name in shared}
    network.load_state_dict(from_published_names(given))
    rng = np.random.RandomState(7)
    images = torch.from_numpy(rng.standard_normal((2, 3, 112, 112)).astype(np.float32)).double()
    landmarks = 4.0 * torch.from_numpy(rng.randint(3, 25, (2, 5, 2))) + 1.5
    logits, features = network.double()(images, landmarks)
    for found, name in ((features.flatten(1), "features"), (logits.transpose(0, 1), "logits")):
        due = torch.tensor(FROZEN["wide"][name], dtype=torch.float64)
        torch.testing.assert_close(found, due, rtol=1e-8, atol=1e-9)


def method_of(state: dict[str, Tensor]) -> AGRA:
    method = AGRA(Adapt(method="agra"), AGRA.Options(), FEATURE_SIZE, target_size=0)
    method.load_state_dict(from_published(state))
    return method.eval()


@torch.no_grad()
@pytest.mark.parametrize("means", ["plain", "clusters"])
def test_a_released_agra_predicts_as_its_code_does(means: str) -> None:
    empty = agra_extras(clusters=means == "clusters")
    assert names_and_shapes(empty) == FROZEN["agra"][means]["names"]
    state = fill(empty) | {"GCN.InterMaskMatrix": empty["GCN.InterMaskMatrix"]}
    state["TargetMean.num_batches_tracked"] = torch.tensor(1)
    features = torch.from_numpy(0.2 * np.abs(np.random.RandomState(11).standard_normal((6, 384))))
    due = torch.tensor(FROZEN["agra"][means]["logits"], dtype=torch.float64)
    answer = method_of(state).transform_output(Output(torch.zeros(6, 7, 7), features.float().view(6, 6, 64)))
    torch.testing.assert_close(answer.logits[:, -1].double(), due, rtol=1e-5, atol=1e-6)  # the method's own precision
    doubled = {name: value.double() for name, value in state.items()}
    for face, logits in zip(features, due, strict=True):  # the reference that the other tests of this file use
        torch.testing.assert_close(agra_answer(face, doubled), logits, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("clusters", [False, True])
def test_the_discriminator_and_gathered_features_are_zero(clusters: bool) -> None:
    """The same file always gives the same state, whatever random numbers were drawn before."""
    one, other = from_published(agra_extras(clusters=clusters)), from_published(agra_extras(clusters=clusters))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not any(value.any() for name, value in one.items() if name.startswith("discriminator."))


# On the command line


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A few faces of JAFFE, with labels and without. Read only."""
    folder = tmp_path_factory.mktemp("stores")
    for name in ("jaffe", "unlabelled"):
        cut(prepared / "jaffe", folder / name, np.arange(0, 42, 42 // FACES)[:FACES], name=name)
    np.save(folder / "unlabelled/labels.npy", np.full_like(np.load(folder / "unlabelled/labels.npy"), -1))
    seal(folder / "unlabelled")
    return folder


@pytest.fixture
def at(tmp_path: Path, stores: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function (words) -> the result of ``fercli evaluate`` on these stores, in a separate folder."""
    monkeypatch.chdir(tmp_path)
    words = ("--set", f"paths.prepared={stores}", "--set", "engine.device=cpu")
    return lambda *more: run("evaluate", *words, *more)


def view_of(stores: Path) -> View:
    spec = spec_of(stores)
    return prepared_faces(spec, "jaffe").plain(np.arange(FACES), view_settings(spec))


@torch.no_grad()
def decided(network: GlobalLocal, view: View) -> Tensor:
    """Return features [N, 384] of faces, after scaling the heads so that their predictions differ between faces."""
    features = network(*view.inputs).features
    first, shared, fused = network.classifiers
    for layer, inputs in (
        (first, features[:, 0]),
        (shared, features[:, 1:].flatten(0, 1)),
        (fused, features.flatten(1)),
    ):
        said = layer(inputs) - layer.bias
        layer.weight /= said.std(0)[:, None]
        layer.bias.copy_(-said.mean(0) / said.std(0))
    return features.flatten(1)


@torch.no_grad()
def heads_of(features: Tensor, state: dict[str, Tensor]) -> np.ndarray:
    """Probabilities [N, 7, 7], head by head, from a released file's classifiers."""
    found = []
    for face in features:
        parts = [*((0 if i == 0 else 1, face[64 * i : 64 * i + 64]) for i in range(6)), (2, face)]
        said = [state[f"classifiers.{c}.weight"] @ part + state[f"classifiers.{c}.bias"] for c, part in parts]
        found.append(torch.stack(said).softmax(-1))
    return torch.stack(found).numpy()


class Made:
    """A network with the features of its faces, to write released files of each kind."""

    def __init__(self, folder: Path, backbone: str, view: View):
        network = network_of(backbone)
        self.features, self.network = decided(network, view), network
        self.state = to_published_names(network.state_dict())
        self.heads = heads_of(self.features, self.state)
        self.folder = folder
        folder.mkdir()

    def save(self, name: str, document: Any) -> Path:
        torch.save(document, self.folder / name)
        return self.folder / name

    def agra(self) -> dict[str, Tensor]:
        """AGRA's tensors: norms fitted to these features, and a source mean near each of seven faces."""
        state, features = agra_extras(), self.features
        for domain in ("Source", "Target"):
            state[f"{domain}BN.running_mean"], state[f"{domain}BN.running_var"] = features.mean(0), features.var(0)
        state["SourceMean.running_mean"] = features[:7].flip(0) + 0.01 * features.std(0)
        said = torch.stack([agra_answer(face, state) for face in features])
        state["fc.weight"], state["fc.bias"] = state["fc.weight"] / said.std(0)[:, None], -said.mean(0) / said.std(0)
        return state


@pytest.fixture(scope="module")
def ir18(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Made:
    return Made(tmp_path_factory.mktemp("released") / "ir18", "ir18", view_of(stores))


@pytest.fixture(scope="module")
def files(ir18: Made) -> dict[str, Path]:
    """Released files with an IR-18: AGLRLS, one without b (as CGLRL saves it, on two GPUs), AGRA."""
    parallel = {f"module.{name}": value for name, value in ir18.state.items()}
    return {
        "aglrls": ir18.save("ResNet18RAFtoJAFFE.pkl", aglrls(ir18.network)),
        "cglrl": ir18.save("cglrl.pkl", {"epoch": 40, "model": parallel}),
        "agra": ir18.save("AGRA_Accuracy.pkl", agra(ir18.network, **ir18.agra())),
    }


def document(result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout, parse_constant=pytest.fail)


def rows_of(results: dict[str, Any]) -> list[dict[str, str]]:
    report = Path(results["files"]["results"]).parent
    with (report / results["entries"][0]["predictions"]).open(newline="") as file:
        return list(csv.DictReader(file))


def heads_in(rows: list[dict[str, str]]) -> list[list[str]]:
    return [[row[f"head_{name}"] for name in HEADS] for row in rows]


def names(answers: Any) -> list[str]:
    return [EXPRESSIONS[int(answer)] for answer in answers]


def test_aglrls_predicts_with_its_own_b(at, files, ir18, stores) -> None:
    results = document(at("--model", files["aglrls"], "--target", "jaffe", "--json"))
    (entry,), rows = results["entries"], rows_of(results)
    due = [loops.glpc(heads, STATUS, empty_sum="class-0")[0] for heads in ir18.heads]
    assert [row["answer"] for row in rows] == names(due) and len({row["stage"] for row in rows}) > 1
    assert heads_in(rows) == [names(heads.argmax(-1)) for heads in ir18.heads]
    right = [row["answer"] == row["label"] for row in rows]
    assert entry["heads"]["glpc"]["accuracy"] == pytest.approx(sum(right) / FACES)
    assert set(entry["heads"]) == {*HEADS, "global+fused", "glpc"}
    told = {key: entry[key] for key in ("method", "registered", "epoch", "decision", "source", "folder", "stage")}
    assert told == {
        **{"method": "released AGLRLS", "registered": "aglrls", "epoch": 12, "decision": "glpc", "source": "unknown"},
        **{"folder": "ResNet18RAFtoJAFFE.pkl", "stage": "adapt"},
    }
    # A model whose epoch was chosen with test labels is not a result of unsupervised adaptation.
    assert (entry["selection"], entry["reads"], entry["oracle_method"]) == ("oracle", ["target test labels"], True)
    assert results["spec"]["model"]["backbone"] == "ir18" and results["gaps"] == results["published"] == []
    assert entry["calibration"]["fitted_on"] == 0
    assert results["files"]["csv"] == "runs/model-ResNet18RAFtoJAFFE/report/results.csv"
    again = document(at("--model", files["aglrls"], "--target", "jaffe", "--decision", "fused", "--json"))
    assert [row["answer"] for row in rows_of(again)] == names(ir18.heads[:, 6].argmax(-1))


def test_without_b_the_fused_head_predicts_and_the_source_is_not_guessed(at, files, ir18) -> None:
    result = at("--model", files["cglrl"], "--target", "jaffe")
    assert result.exit_code == 0 and "released AGLRLS/CGLRL" in result.stdout and "40, ORACLE" in result.stdout
    assert "source unknown (set it with --source NAME); the held-out faces are not known, so no temp" in result.stderr
    assert "stores" in result.stderr and "is used as it was prepared: align template, size 112" in result.stderr
    results = document(at("--model", files["cglrl"], "--target", "jaffe", "--decision", "global+fused", "--json"))
    summed = np.log(ir18.heads[:, [0, 6]]).sum(1).argmax(-1)
    assert [row["answer"] for row in rows_of(results)] == names(summed)
    assert results["entries"][0]["heads"]["fused"] is not None and "glpc" not in results["entries"][0]["heads"]


@torch.no_grad()
def test_agra_predicts_through_its_graphs_and_has_no_other_head(at, files, ir18) -> None:
    results = document(at("--model", files["agra"], "--target", "jaffe", "--source", "raf-db", "--json", "--report"))
    (entry,), rows, state = results["entries"], rows_of(results), ir18.agra()
    due = torch.stack([agra_answer(face, state) for face in ir18.features]).softmax(-1)
    assert len(set(due.argmax(-1).tolist())) > 2
    assert [row["answer"] for row in rows] == names(due.argmax(-1))
    found = [[float(row[f"p_{name}"]) for name in EXPRESSIONS] for row in rows]
    np.testing.assert_allclose(found, due, atol=2e-3)  # stored as float16
    assert heads_in(rows) == [[""] * 6 + [row["answer"]] for row in rows]
    assert list(entry["heads"]) == ["fused"] and (entry["method"], entry["epoch"]) == ("released AGRA", None)
    assert entry["source"] == "raf-db" and entry["oracle_method"]
    page = Path(results["files"]["report"]).read_text()
    assert "released AGRA" in page and "oracle: reads target labels" in page and "epoch None" not in page
    cases = [face for case in results["failure_cases"] for face in case["faces"]]
    assert cases and all([vote["head"] for vote in face["votes"]] == ["fused"] for face in cases)
    for words, code, said in (
        (["--decision", "nose"], 2, "cannot predict with nose; its heads are: fused"),
        (["--decision", "global+fused"], 2, "cannot predict with global+fused; its heads are: fused"),
        (["--select", "corr-c"], 2, "is a released checkpoint with only one epoch; leave out --select"),
    ):
        assert said in told(at("--model", files["agra"], "--target", "jaffe", *words), code)


def test_a_given_source_is_printed_next_to_published_rows(stores: Path, files) -> None:
    spec = Spec.model_validate({"paths": {"prepared": str(stores)}, "model": {"test_flip": True}})
    trained = find_trained(files["aglrls"], spec=spec, sources=["raf-db"])
    assert (trained.spec.data.source, trained.method) == (["raf-db"], "released AGLRLS")
    assert trained.spec.model.test_flip and trained.spec.model.backbone == "ir18"
    printed = [row["accuracy"] for row in published_rows(trained.spec, ["jaffe"], False)]
    assert printed == [61.03]  # AGRA's with an IR-18
    assert published_rows(find_trained(files["aglrls"], spec=spec).spec, ["jaffe"], False) == []
    assert (trained.spec.adapt.method, trained.rule) == ("aglrls", trained.rule._replace(name="glpc", threshold=0.95))
    torch.testing.assert_close(trained.rule.status, STATUS)


def test_a_target_without_labels_gets_predictions_but_no_score(at, files) -> None:
    result = at("--model", files["aglrls"], "--target", "unlabelled")
    assert result.exit_code == 0 and f"0/{FACES}" in result.stdout
    assert "unlabelled has no labels, so nothing is scored; each face's prediction is in predictions/" in result.stderr
    results = document(at("--model", files["aglrls"], "--target", "unlabelled", "--json"))
    assert results["entries"][0]["scored"] == 0 and results["entries"][0]["heads"]["glpc"] is None
    assert len(rows_of(results)) == FACES


def test_the_source_stage_of_aglrls_is_recognised(at, ir18, tmp_path) -> None:
    zeros = [torch.zeros(7) for _ in range(7)]
    changes = {"classwise": zeros, "epoch": 15, "optimizer_ad": None}
    document_ = {**aglrls(ir18.network, **changes), "ad_nets": None}
    torch.save(document_, tmp_path / "source.pkl")
    (entry,) = document(at("--model", "source.pkl", "--target", "jaffe", "--json"))["entries"]
    assert (entry["method"], entry["stage"]) == ("released AGLRLS, source stage", "source")
    assert (entry["selection"], entry["reads"], entry["oracle_method"]) == (
        "source-test",
        ["source test labels"],
        False,
    )
    assert entry["decision"] == "fused"


def test_the_released_mobilenet_is_scored(at, stores, tmp_path) -> None:
    made = Made(tmp_path / "wide", "mobilenet-v2-wide", view_of(stores))
    path = made.save("MobileNet.pkl", aglrls(made.network))
    results = document(at("--model", path, "--target", "jaffe", "--json"))
    rows, due = rows_of(results), [loops.glpc(heads, STATUS, empty_sum="class-0")[0] for heads in made.heads]
    assert [row["answer"] for row in rows] == names(due)
    assert results["spec"]["model"]["backbone"] == "mobilenet-v2-wide"
    state = agra(made.network, **made.agra())
    results = document(at("--model", made.save("agra.pkl", state), "--target", "jaffe", "--json"))
    answers = [int(agra_answer(face, state).argmax()) for face in made.features]
    assert [row["answer"] for row in rows_of(results)] == names(answers)


@pytest.mark.slow
def test_an_ir50_is_scored(at, stores, tmp_path) -> None:
    made = Made(tmp_path / "ir50", "ir50", view_of(stores))
    results = document(at("--model", made.save("a.pkl", aglrls(made.network)), "--target", "jaffe", "--json"))
    due = [loops.glpc(heads, STATUS, empty_sum="class-0")[0] for heads in made.heads]
    assert [row["answer"] for row in rows_of(results)] == names(due)


@pytest.mark.slow
def test_the_released_mobilenet_trains_from_a_released_file(tmp_path, prepared) -> None:
    torch.save(aglrls(network_of("mobilenet-v2-wide")), tmp_path / "wide.pkl")
    model = {"model.backbone": "mobilenet-v2-wide", "model.weights": str(tmp_path / "wide.pkl")}
    short = {f"{stage}.{key}": 1 for stage in ("train_source", "adapt") for key in ("epochs", "steps_per_epoch")}
    rates = {"train_source.lr": 1e-3, "adapt.lr": 1e-4}
    bench = Bench(tmp_path / "bench", prepared, {**model, **short, **rates})
    bench.done("train-source")
    bench.done("adapt")
    entries = bench.json("evaluate")["entries"]
    assert {entry["method"] for entry in entries} == {"source-only", "aglrls"}


# Predictions


def test_predict_uses_it_and_commands_that_need_a_spec_refuse_it(files, ir18, tmp_path, faces, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(faces[3].image).save("face.png")
    words = ("predict", "face.png", "--device", "cpu", "--workers", "1", "--run")
    (line,) = lines(run(*words, files["aglrls"]))
    cpu, rule = torch.device("cpu"), DecisionRule("glpc", STATUS)
    (due,) = Recognizer(ir18.network.eval(), Spec(), cpu, rule)("face.png")
    (found,) = line["faces"]
    assert (found["expression"], found["stage"], found["heads"]) == (due.expression, due.stage, due.heads)
    np.testing.assert_allclose(list(found["probabilities"].values()), due.probabilities, atol=1e-4)
    (line,) = lines(run(*words, files["agra"]))
    assert line["faces"][0]["heads"] == {"fused": line["faces"][0]["expression"]}
    assert "with an unknown target (AGRA), not a model for jaffe" in told(
        run(*words, files["agra"], "--target", "jaffe")
    )
    refused = "does not record how its faces were cut; use it with a spec: fercli evaluate --model FILE"
    assert refused in told(run("export", files["agra"]))
    with pytest.raises(FercliError, match=r"AGLRLS/CGLRL checkpoint.*which does not record how its faces were cut"):
        Recognizer.load(files["cglrl"])
    inspected = run("weights", "inspect", files["aglrls"], "--json")
    assert inspected.exit_code == 0 and json.loads(inspected.stdout)["weights"][0]["misfits"] == []


# What cannot be scored


def without_heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("classifiers.")}


def agra_of(**changes: Any) -> dict[str, Any]:
    """An empty AGRA file with some tensors changed; None removes one."""
    state = {**without_heads(hollow("ir18")), **agra_extras(), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


def changed(**changes: Any) -> dict[str, Any]:
    state = {**hollow("ir18"), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {"model": {name: value for name, value in state.items() if value is not None}}


def classes(count: int) -> dict[str, Tensor]:
    widths = (64, 64, 384)
    return {
        **{f"classifiers__{i}__weight": torch.zeros(count, width) for i, width in enumerate(widths)},
        **{f"classifiers__{i}__bias": torch.zeros(count) for i in range(3)},
    }


MISTAKES = {
    "no checkpoint": (
        lambda: {"state_dict": {"x.weight": torch.zeros(3)}},
        "and not a released one: 1 tensors in state_di",
    ),
    "a VGG": (
        lambda: (
            {"layer1.0.weight": torch.zeros(64, 3, 3, 3), "Crop_Net.0.0.weight": torch.zeros(256, 128, 3, 3)}
            | agra_extras()
        ),
        "has an unknown backbone; only IR-50, IR-18 and the released code's own MobileNetV2 can be scored",
    ),
    "an IR-SE": (
        lambda: changed(**{"layer1__0__res_layer__5__fc1__weight": torch.zeros(4, 64, 1, 1)}),
        "has an IR-SE-18; only IR-50",
    ),
    "eight classes": (lambda: changed(**classes(8)), "has 8 classes, but fercli has 7 expressions"),
    "eight classes, AGRA": (
        lambda: agra_of(fc__weight=torch.zeros(8, 384)),
        "has 8 classes, but fercli has 7 expressions",
    ),
    "a part missing": (
        lambda: changed(output_layer__0__bias=None),
        "is not AGLRLS/CGLRL as released: 1 missing: global_head.conv.bias",
    ),
    "not finite": (
        lambda: changed(output_layer__0__bias=torch.full((64,), torch.nan)),
        "1 with NaN or infinite numbers: global_head.conv.bias",
    ),
    "b of six heads": (
        lambda: {**changed(), "classwise": list(STATUS[:6])},
        "has a classwise (the learning status b) that is not 7 x 7 numbers from 0 to 1",
    ),
    "b beyond 1": (lambda: {**changed(), "classwise": list(STATUS + 0.5)}, "is not 7 x 7 numbers from 0 to 1"),
    "b as text": (lambda: {**changed(), "classwise": "none"}, "is not 7 x 7 numbers from 0 to 1"),
    "another order": (
        lambda: {**changed(), "classes": ["Anger", *EXPRESSIONS[:6]]},
        "lists its classes as Anger, surprise, fear, disgust, happiness, sadness and 1 more (classes), not in the",
    ),
    "face.evoLVe": (
        lambda: {"input_layer.0.weight": torch.zeros(64, 3, 3, 3), "body.0.res_layer.0.weight": torch.zeros(64)},
        "(face.evoLVe backbone) has no classifiers, so it makes no predictions that could be scored; train from it",
    ),
    "torchvision": (
        lambda: {"features.1.conv.0.0.weight": torch.zeros(32, 1, 3, 3)},
        "(torchvision MobileNetV2) has no classifiers",
    ),
    "a backbone alone": (lambda: {"model": without_heads(hollow("ir18"))}, "has no classifiers"),
    "a baseline": (
        lambda: agra_of(
            **{name.replace(".", "__"): None for name in agra_extras() if not name.startswith(("fc", "loc"))}
        ),
        "has AGRA's classifiers but no graph networks: it is a baseline of the CD-FER benchmark",
    ),
    "a baseline with idle graphs": (
        lambda: agra_of(GCN__IntraAdjMatrix=intra_edges(), GCN__InterAdjMatrix=inter_edges()),
        "has an intra-domain graph that was never trained: it is a baseline of the CD-FER benchmark, or AGRA without",
    ),
    "one idle graph": (
        lambda: agra_of(GCN__InterAdjMatrix=inter_edges() / inter_edges().sum(1, keepdim=True)),
        "has an inter-domain graph that was never trained",
    ),
    "AGRA's source stage": (
        lambda: agra_of(TargetMean__num_batches_tracked=torch.tensor(0)),
        "is from AGRA's source stage, before the target means were computed",
    ),
    "a mask of any size": (
        lambda: agra_of(GCN__InterMaskMatrix=torch.zeros(()).expand(1 << 30, 1 << 10)),
        "GCN.InterMaskMatrix is not the mask of the edges across the domains",
    ),
    "another mask": (
        lambda: agra_of(GCN__InterMaskMatrix=torch.ones(12, 12)),
        "GCN.InterMaskMatrix is not the mask of the edges across the domains",
    ),
    "another graph": (
        lambda: agra_of(GCN__adj=torch.ones(12, 12), GCN__InterGCN__FC__bias=None),
        "does not match AGRA as released: 1 missing: GCN.InterGCN.FC.bias; 1 unexpected: GCN.adj",
    ),
    "AGRA, not finite": (
        lambda: agra_of(fc__bias=torch.full((7,), torch.inf)),
        "1 with NaN or infinite numbers: fc.bias",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_scored_is_one_line(case: str, at, tmp_path) -> None:
    make, said = MISTAKES[case]
    torch.save(make(), tmp_path / "file.pkl")
    line = told(at("--model", "file.pkl", "--target", "jaffe"))
    assert said in line and "file.pkl" in line and not Path("runs").exists()


def test_a_file_with_only_tensors_is_scored_too(ir18, tmp_path) -> None:
    """In safetensors, at half precision, without counters: nothing but the network's numbers."""
    half = {k: v.half().contiguous() for k, v in ir18.state.items() if not k.endswith("num_batches_tracked")}
    save_file(half, tmp_path / "tensors.safetensors")
    trained = find_trained(tmp_path / "tensors.safetensors", spec=Spec())
    assert (trained.method, trained.decision, trained.state["best"]["epoch"]) == (
        "released AGLRLS/CGLRL",
        "fused",
        None,
    )
    network = trained.network(torch.device("cpu")).state_dict()
    for name, value in from_published_names(half).items():
        assert torch.equal(network[name], value.float()), name


def test_code_in_a_file_does_not_run(at, tmp_path) -> None:
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({**changed(), "optimizer": Harmful()}, tmp_path / "file.pkl")
    assert "asks to run code" in told(at("--model", "file.pkl", "--target", "jaffe"))
    assert not (tmp_path / "ran").exists()
