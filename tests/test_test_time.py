"""A model that adapts to the faces it receives: each method against a plain loop, and what predict reports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import Bench, lines, run, told
from PIL import Image
from tiny import batch as drawn
from tiny import model_spec
from torch import nn

from fercli import Recognizer
from fercli.cli.predict import command
from fercli.errors import FercliError
from fercli.loading.augment import View
from fercli.models import HEADS, Output, build_network
from fercli.predict import stream
from fercli.predict.faces import see
from fercli.predict.results import COLUMNS
from fercli.predict.stream import Picture
from fercli.predict.test_time import ADAPTATIONS, MOMENTUM, OWN_FACES, RATE, RATE_FACES, SUPPORTS, T3A, AdaBN, Tent
from fercli.predict.writing import Writing
from fercli.synthetic.render import STUDIO, render

METHODS = ("adabn", "tent", "t3a")


def network(**changes) -> nn.Module:
    """A small network in eval mode whose batch norms have non-default statistics."""
    torch.manual_seed(4)
    made = build_network(model_spec(width=4, **changes))
    generator = torch.Generator().manual_seed(8)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(1 + torch.rand(module.num_features, generator=generator))
    return made.eval()


def faces(count: int, seed: int = 3) -> View:
    generator = torch.Generator().manual_seed(seed)
    images, landmarks, _ = drawn(count)
    return View(images + torch.randn(count, 1, 1, 1, generator=generator), landmarks)


def norms(of: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in of.modules() if isinstance(module, nn.BatchNorm2d)]


def taken(made: nn.Module, view: View) -> dict[nn.BatchNorm2d, torch.Tensor]:
    """The input of each batch norm for a batch, in the order of the forward pass."""
    given: dict[nn.BatchNorm2d, torch.Tensor] = {}

    def take(norm, maps, _):
        given[norm] = maps[0].detach()

    hooks = [norm.register_forward_hook(take) for norm in norms(made)]
    with torch.no_grad():
        made.compute(*view.inputs)
    for hook in hooks:
        hook.remove()
    return given


def by_statistics(made: nn.Module, views: list[View]) -> None:
    """Set each batch norm, from the first to the last, to the statistics that AdaBN gives it after these batches.

    The first norm's input depends on no statistics, the second's on the first's, and so on: one pass per norm.
    """
    order = list(taken(made, views[0]))
    own = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in order]
    before: list[list[torch.Tensor]] = [[] for _ in order]
    for view in views:
        for i, norm in enumerate(order):
            before[i].append(taken(made, view)[norm])
            pixels = torch.cat([maps.permute(1, 0, 2, 3).flatten(1) for maps in before[i]], 1).double()
            n = sum(map(len, before[i]))
            for buffer, of_model, of_faces in (
                (norm.running_mean, own[i][0], pixels.mean(1)),
                (norm.running_var, own[i][1], ((pixels - pixels.mean(1, keepdim=True)) ** 2).mean(1)),
            ):
                buffer.copy_((OWN_FACES * of_model + n * of_faces) / (OWN_FACES + n))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("counts", [[1], [5], [3, 1, 4]])
def test_adabn_mixes_the_statistics_of_the_model_and_of_all_faces_so_far(counts, flip):
    views = [faces(count, seed) for seed, count in enumerate(counts)]
    adapted, plain = AdaBN(network(test_flip=flip)), network(test_flip=flip)
    for view in views:
        output = adapted(view)
    by_statistics(plain, views)
    for norm, other in zip(norms(adapted.network), norms(plain), strict=True):
        torch.testing.assert_close(norm.running_mean, other.running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(norm.running_var, other.running_var, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(output.logits, plain(*views[-1].inputs).logits, atol=1e-4, rtol=1e-4)


def test_an_episodic_adabn_uses_its_batch_alone():
    view, plain = faces(4), network()
    adapted = AdaBN(network(), episodic=True)
    first = adapted(view).logits
    adapted(faces(6, 5))
    assert torch.equal(adapted(view).logits, first)
    by_statistics(plain, [view])
    with torch.no_grad():
        torch.testing.assert_close(first, plain(*view.inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_tent_takes_steps_of_sgd_on_the_entropy_of_its_heads(flip):
    """Compared with torch's SGD on a network with AdaBN's statistics."""
    views, heads = [faces(6, 1), faces(2, 2), faces(3, 3)], ("global", "nose", "fused")
    which = [HEADS.index(name) for name in heads]
    adapted, plain = Tent(network(test_flip=flip), heads=heads), network(test_flip=flip)
    moved = [tensor for norm in norms(plain) for tensor in (norm.weight, norm.bias)]
    optimizer = torch.optim.SGD(moved, 1.0, MOMENTUM)
    statistics = AdaBN(network(test_flip=flip))
    for view in views:
        output = adapted(view)
        for norm, other in zip(norms(statistics.network), norms(plain), strict=True):
            norm.weight.data, norm.bias.data = other.weight.data, other.bias.data
        statistics(view)
        for norm, other in zip(norms(plain), norms(statistics.network), strict=True):
            norm.running_mean, norm.running_var = other.running_mean, other.running_var
        chances = plain(*view.inputs).logits[:, which].softmax(-1)
        loss = -(chances * chances.log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = RATE * len(view.images) / RATE_FACES
        optimizer.step()
    for norm, other in zip(norms(adapted.network), norms(plain), strict=True):
        torch.testing.assert_close(norm.weight, other.weight, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(norm.bias, other.bias, atol=1e-6, rtol=1e-5)
        assert not torch.equal(norm.weight, torch.ones_like(norm.weight))
    with torch.no_grad():
        torch.testing.assert_close(output.logits, plain(*views[-1].inputs).logits, atol=1e-4, rtol=1e-4)
    assert not output.logits.requires_grad


def test_tent_handles_heads_that_a_model_lacks():
    """A released source model has only the global head: the norms below the local heads do not change."""
    made = network().requires_grad_(False)
    Tent(made, heads=("global",))(faces(4))
    for name, module in made.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)) == name.startswith("local_nets."), name


def test_tent_skips_a_step_that_is_not_finite():
    made = network()
    adapted, before = Tent(made), [norm.weight.clone() for norm in norms(made)]
    view = faces(2)
    view.images[0, 0, 0, 0] = torch.nan
    adapted(view)
    assert all(torch.equal(norm.weight, old) for norm, old in zip(norms(made), before, strict=True))


def supports_by_hand(made: nn.Module, sharing: str, seen: list[Output]) -> torch.Tensor:
    """T3A's logits for the last batch."""
    heads = list(made.classifiers)
    heads = [heads[0], *([heads[1]] * 5 if sharing == "shared" else heads[1:6]), heads[-1]]
    logits = torch.zeros(len(seen[-1].logits), 7, 7)
    for h, head in enumerate(heads):
        supports = []  # (class, entropy, unit feature)
        for c in range(7):
            row = head.weight[c].detach()
            p = (head.weight @ row + head.bias).softmax(0)
            supports.append((c, float(-(p * p.log()).sum()), row / row.norm()))
        for output in seen:
            for logit, features in zip(output.logits, output.features, strict=True):
                z, p = features.flatten() if h == 6 else features[h], logit[h].softmax(0)
                supports.append((int(p.argmax()), float(-(p * p.log()).sum()), z / z.norm()))
        length = head.weight.norm(dim=1).mean()
        for c in range(7):
            kept = sorted((one for one in supports if one[0] == c), key=lambda one: one[1])[:SUPPORTS]
            template = torch.stack([one[2] for one in kept]).sum(0)
            for i, features in enumerate(seen[-1].features):
                z = features.flatten() if h == 6 else features[h]
                logits[i, h, c] = length * (z @ (template / template.norm()))
    return logits.detach()


@pytest.mark.parametrize("sharing", ["shared", "separate"])
@pytest.mark.parametrize("most", [100, 2])
def test_t3a_predicts_with_the_means_of_the_most_certain_supports(sharing, most, monkeypatch):
    monkeypatch.setattr("fercli.predict.test_time.SUPPORTS", most)
    monkeypatch.setitem(globals(), "SUPPORTS", most)
    made = network(classifiers=sharing, test_flip=True).requires_grad_(False)
    adapted, views = T3A(made), [faces(9, 1), faces(1, 2), faces(7, 3)]
    with torch.no_grad():
        seen = [made(*view.inputs) for view in views]
    for i, view in enumerate(views):
        output = adapted(view)
        expected = supports_by_hand(made, sharing, seen[: i + 1])
        torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(output.features, seen[i].features)
    for supports in adapted.state():
        assert torch.bincount(supports.classes, minlength=7).max() <= most


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_that_fails_leaves_no_trace_and_reset_restores_the_model(name):
    made = network()
    adapted, view = ADAPTATIONS[name](made), faces(3)
    first = adapted(view).logits
    second = ADAPTATIONS[name](network())
    second(view)
    run_on, second.run = second.run, lambda *inputs: (run_on(*inputs), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        second(faces(5, 7))
    second.run = run_on
    again = adapted(view).logits
    assert torch.equal(second(view).logits, again) and not torch.equal(first, again)
    adapted.reset()
    assert torch.equal(adapted(view).logits, first)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
def test_an_episodic_model_restores_its_weights(name, local):
    made = network(local=local)
    view = View(*drawn(3, 48))
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with torch.inference_mode():
        plain, adapted = made(*view.inputs), ADAPTATIONS[name](made, episodic=True)(view)
    assert not torch.equal(plain.logits, adapted.logits)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    assert not made.training and not any(value.is_inference() for value in made.state_dict().values())


def test_a_method_that_transforms_its_output():
    """Adaptation uses its transformed output; T3A refuses it, because its templates come from the classifiers."""

    def halved(output: Output) -> Output:
        return Output(output.logits / 2, output.features)

    made, view = network(), faces(4)
    one, other = AdaBN(made, halved, episodic=True)(view), AdaBN(network(), episodic=True)(view)
    assert torch.equal(2 * one.logits, other.logits)
    Tent(made, halved)(view)
    with pytest.raises(FercliError, match=r"--adapt t3a needs the network's own classifiers.*; use adabn or tent"):
        T3A(made, halved)


def test_a_model_without_batch_norms():
    with pytest.raises(FercliError, match="--adapt tent adapts batch norms, but this model has none; use t3a"):
        Tent(nn.Linear(2, 2))


# The recognizer


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [render(STUDIO, i, i % 7, i).image for i in range(9)]


def probabilities(answers) -> np.ndarray:
    return np.array([face.probabilities for found in answers for face in found])


@pytest.mark.parametrize("name", METHODS)
def test_a_recognizer_that_adapts(trained: Bench, pictures, name):
    plain = Recognizer.load(trained.runs, device="cpu")
    before = probabilities(plain.many(pictures, batch=4))
    empty = np.full((60, 60, 3), 128, np.uint8)

    def answered(episodic: bool, *batches: int) -> list[np.ndarray]:
        one = Recognizer.load(trained.runs, device="cpu", adapt=name, episodic=episodic)
        assert one(empty) == []
        return [probabilities(one.many([empty, *pictures], batch)) for batch in batches]

    first, second = answered(True, 4, 4)
    assert np.array_equal(first, second)  # episodic: nothing is learnt
    continual, further = answered(False, 4, 4)
    again, _ = answered(False, 4, 4)
    assert np.array_equal(continual, again) and not np.array_equal(continual, further)
    assert not np.array_equal(continual, first) and not np.array_equal(before, first)
    assert plain.adaptation is None and np.array_equal(before, probabilities(plain.many(pictures, batch=4)))
    for made in (first, continual, further):
        np.testing.assert_allclose(made.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [1, 200])
def test_one_face_and_two_hundred(trained: Bench, pictures, name, count):
    """One face changes the prediction a little; many faces are predicted in batches."""
    plain = Recognizer.load(trained.runs, device="cpu")
    (face,) = see(pictures[3], plain.options, plain.with_crops)
    adapting = Recognizer.load(trained.runs, device="cpu", adapt=name)
    made = [one for start in range(0, count, 64) for one in adapting.answer([face] * min(64, count - start))]
    assert len(made) == count and np.isfinite([one.confidence for one in made]).all()
    if count == 1 and name != "t3a":
        (own,) = plain.answer([face])
        assert np.abs(made[0].probabilities - own.probabilities).max() < 0.15


def test_a_face_counts_once_although_its_batch_is_predicted_again(trained: Bench, pictures, monkeypatch):
    """The images of a failed batch are predicted one by one; those of the batches around it are not repeated."""
    adapting = Recognizer.load(trained.runs, device="cpu", adapt="adabn")
    answer, asked = adapting.answer, []

    def failing(faces):
        asked.append(len(faces))
        if len(asked) == 2:
            raise RuntimeError("out of luck")
        return answer(faces)

    monkeypatch.setattr(adapting, "answer", failing)
    made = list(adapting.many(pictures[:8], batch=3))
    assert [len(found) for found in made] == [1] * 8 and asked == [3, 3, 1, 1, 1, 2]
    assert {seen.faces for seen, *_ in adapting.adaptation.state()} == {8}


def test_an_image_that_fails_in_part_has_no_prediction():
    """Its faces are in two batches; the faces of the other images are predicted."""

    def answer(faces):
        if "bad" in faces:
            raise RuntimeError("out of luck")
        return list(faces)

    held = [(Picture("a"), ["1"]), (Picture("b"), ["2", "bad", "3"]), (Picture("c"), ["4"]), (Picture("d"), None)]
    found = {picture.name: (said, picture.error) for picture, said in stream._answered(held, answer, 2)}
    assert found["a"] == (["1"], None) and found["c"] == (["4"], None) and found["d"] == (None, None)
    assert found["b"][0] is None and "out of luck" in found["b"][1] and held[-1][0].settled


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"adapt": "sar"}, "--adapt sar: no such method; choose one of adabn, tent, t3a"),
        ({"episodic": True}, "--episodic needs --adapt; name a method with --adapt"),
    ],
)
def test_options_that_are_refused(trained: Bench, given, why):
    with pytest.raises(FercliError, match=why):
        Recognizer.load(trained.runs, device="cpu", **given)


# The command


@pytest.fixture(scope="module")
def photos(tmp_path_factory, pictures) -> Path:
    """Twenty images of one or two faces, one without a face, a damaged one, and a video of six frames."""
    folder = tmp_path_factory.mktemp("in") / "photos"
    folder.mkdir()
    for i in range(20):
        shown = pictures[i % 9] if i % 3 else np.hstack([pictures[i % 9], pictures[(i + 4) % 9]])
        Image.fromarray(shown).save(folder / f"{i:02d}.png")
    Image.new("RGB", (40, 30)).save(folder / "05.png")
    (folder / "12.png").write_bytes((folder / "11.png").read_bytes()[:900])
    write_clip(folder / "09.mp4", [picture[:224, :208] for picture in pictures[:6]])
    return folder


@pytest.fixture
def predict(trained: Bench):
    def call(*arguments: object):
        return run("predict", "-c", trained.spec, "--device", "cpu", "--workers", 1, *arguments)

    return call


def test_the_command_knows_the_methods():
    (choice,) = [option.type.choices for option in command.params if option.name == "adapt"]
    assert tuple(choice) == tuple(ADAPTATIONS) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_outputs_say_how_the_model_adapts(predict, photos, tmp_path, name):
    plain = predict(photos, "--batch", 4)
    both = ("--adapt", name, "--batch", 4)
    result = predict(photos, *both)
    found = lines(result)
    assert {line["adapted"] for line in found} == {f"{name}, continual"} and len(found) == 26
    remark = f"the model adapts to the input faces ({name}, continual): a prediction depends on the other faces of "
    assert f"{remark}its batch (--batch 4) and on all faces before it\n" in result.stderr
    assert "adapt" not in plain.stdout + plain.stderr

    def bare(line: dict) -> dict:
        return {key: value for key, value in line.items() if key != "adapted"}

    assert [bare(line) for line in found] != lines(plain)
    assert [line["faces"][0]["box"] for line in found[:3]] == [line["faces"][0]["box"] for line in lines(plain)[:3]]
    assert predict(photos, *both).stdout == result.stdout
    table = predict(photos, *both, "--episodic", "--csv", tmp_path / "a.csv", "--json")
    assert json.loads(table.stdout)["adapted"] == f"{name}, episodic"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert tuple(rows[0]) == (*COLUMNS, "adapted") and {row["adapted"] for row in rows} == {f"{name}, episodic"}


def test_without_adapt_outputs_do_not_mention_it(predict, photos, tmp_path):
    result = predict(photos / "00.png", "--csv", tmp_path / "a.csv", "--json")
    assert "adapted" not in json.loads(result.stdout)
    assert tuple((tmp_path / "a.csv").read_text().splitlines()[0].split(",")) == COLUMNS


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_episodic_run_gives_the_same_bytes(predict, photos, tmp_path, name):
    common = (photos, "--adapt", name, "--episodic", "--batch", 4, "--smooth", 0.5)
    assert predict(*common, "--jsonl", tmp_path / "whole.jsonl").exit_code == 0
    out, added, add = tmp_path / "a.jsonl", 0, Writing.add
    for stop in (3, 12, 9):  # images of each start; the second stops within or after the video

        def stopping(self, picture, faces, stop=stop):
            nonlocal added
            if added == stop:
                raise KeyboardInterrupt
            added += 1
            add(self, picture, faces)

        added = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Writing, "add", stopping)
            resumed = ["--resume"] if (tmp_path / "a.jsonl.part").exists() else []
            result = predict(*common, "--jsonl", out, *resumed)
        assert result.exit_code == 130 and "run the same command with --resume" in result.stderr
    other = predict(*common, "--adapt", "t3a" if name == "tent" else "tent", "--jsonl", out, "--resume")
    assert "started with another --smooth, --every, --batch, --device or --adapt" in other.stderr
    assert predict(*common, "--jsonl", out, "--resume").exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_continual_run_cannot_be_resumed(predict, photos, tmp_path, monkeypatch):
    out, common, add = tmp_path / "a.jsonl", (photos, "--adapt", "tent", "--batch", 4), Writing.add

    def stopping(self, picture, faces):
        if picture.number == 8:
            raise KeyboardInterrupt
        add(self, picture, faces)

    with monkeypatch.context() as patch:
        patch.setattr(Writing, "add", stopping)
        result = predict(*common, "--jsonl", out)
    assert result.exit_code == 130 and "a.jsonl.part; start again with --force" in result.stderr
    why = "--resume does not work with a continual --adapt: what the model learnt from earlier faces is gone"
    told_of = [line for line in predict(*common, "--jsonl", out, "--resume").stderr.splitlines() if "error" in line]
    assert len(told_of) == 1 and why in told_of[0] and "start again with --force" in told_of[0]
    assert predict(*common, "--jsonl", out, "--force").exit_code == 0
    assert "--episodic needs --adapt" in told(predict(photos, "--episodic"), 2)
