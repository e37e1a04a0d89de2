"""A face in an image gets the same prediction as its prepared face, alone or in a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bench
from PIL import Image

import fercli
from fercli import Recognizer
from fercli.engine.data import view_settings
from fercli.engine.network import empty_network
from fercli.engine.predict import predict
from fercli.engine.trained import find_trained
from fercli.errors import FercliError
from fercli.evaluation.decision import STAGES, DecisionRule
from fercli.expressions import EXPRESSIONS
from fercli.loading.face_dataset import FaceDataset
from fercli.models import HEADS
from fercli.predict.faces import see
from fercli.spec import load
from fercli.store import Store, read_manifest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recognizer(trained: Bench) -> Recognizer:
    return Recognizer.load(trained.runs, device="cpu")


@pytest.fixture(scope="module")
def pictures(prepared: Path) -> list[Path]:
    """The images of the first prepared faces in JAFFE's layout."""
    rows = [row for row in read_manifest(prepared / "jaffe") if row["status"] != "rejected"]
    return [prepared.parent / "data/jaffe" / row["path"] for row in rows[:9]]


def same(face, probabilities, decision, i: int) -> None:
    answer = EXPRESSIONS[int(decision.answers[i])]
    assert (face.expression, face.stage) == (answer, STAGES[int(decision.stages[i])])
    np.testing.assert_allclose(face.probabilities, decision.probabilities[i].numpy(), atol=1e-4)
    assert face.confidence == pytest.approx(float(decision.probabilities[i].max()), abs=1e-4)
    votes = probabilities[i].argmax(-1).tolist()
    assert face.heads == {name: EXPRESSIONS[vote] for name, vote in zip(HEADS, votes, strict=True)}


@pytest.mark.parametrize("local", ["feature-map", "image-crop"])
@pytest.mark.parametrize("rule", ["fused", "global+fused", "glpc"])
def test_an_image_gets_the_prediction_of_its_prepared_face(trained, pictures, local, rule):
    spec = load(str(trained.spec), [f"model.local={local}"])
    torch.manual_seed(3)
    network, status = empty_network(spec).eval(), torch.rand(7, 7) * 0.3
    store = Store.open(trained.prepared / "jaffe", labels=False)
    seen = predict(
        network, FaceDataset([store], [np.arange(len(pictures))], CPU, spec.model.reads_crops), view_settings(spec), 4
    )
    decision = DecisionRule(rule, status)(seen.probabilities)
    recognizer = Recognizer(network, spec, CPU, DecisionRule(rule, status))
    for i, faces in enumerate(recognizer.many(pictures, batch=4)):
        assert len(faces) == 1
        same(faces[0], seen.probabilities, decision, i)


def test_a_trained_run_predicts_as_evaluate_does(trained, recognizer, pictures):
    model = find_trained(trained.runs)
    store = Store.open(trained.prepared / "jaffe", labels=False)
    faces = FaceDataset([store], [np.arange(len(pictures))], CPU, False)
    seen = predict(model.network(CPU), faces, view_settings(model.spec), 128)
    decision = model.rule(seen.probabilities)
    for i, path in enumerate(pictures):
        same(recognizer(path)[0], seen.probabilities, decision, i)


def test_arrays_pil_images_and_paths_are_the_same(recognizer, pictures):
    image = Image.open(pictures[0])
    array = np.asarray(image.convert("RGB"))
    one, two, three = recognizer(str(pictures[0])), recognizer(image), recognizer(array)
    for other in (two, three):
        assert np.array_equal(one[0].landmarks, other[0].landmarks)
        assert np.array_equal(one[0].probabilities, other[0].probabilities)
    left, top, right, bottom = one[0].box
    assert 0 <= left < right <= array.shape[1] and 0 <= top < bottom <= array.shape[0]
    assert (one[0].landmarks >= (left, top)).all() and (one[0].landmarks <= (right, bottom)).all()
    assert one[0].probabilities.sum() == pytest.approx(1, abs=1e-5) and one[0].track is None


@pytest.mark.parametrize("kind", ["turned", "clear", "grey of 16 bits", "grey of floats"])
def test_files_bytes_images_and_arrays_get_the_same_predictions(recognizer, pictures, tmp_path, kind):
    """Regression: predictions differed, or no face was found, if a PIL image was treated differently from its file."""
    image = Image.open(pictures[0]).convert("RGB")
    exif, form = Image.Exif(), "PNG"
    if kind == "turned":
        exif[0x0112], image = 8, image.transpose(Image.Transpose.ROTATE_270)
    elif kind == "clear":
        image = Image.merge("RGBA", (*image.split(), image.convert("L").point(lambda value: 255 if value > 60 else 0)))
    else:
        grey = np.asarray(image.convert("L")) / 255
        image = Image.fromarray((grey * 65535).astype(np.uint16) if "16" in kind else grey.astype(np.float32))
        form = "TIFF"
    path = tmp_path / "a"
    image.save(path, form, **({"exif": exif} if kind == "turned" else {}))
    (expected,) = recognizer(path)
    others = [recognizer(source) for source in (str(path), path.read_bytes(), Image.open(path))]
    others += recognizer.many([path, path.read_bytes(), Image.open(path)], batch=1)
    if kind != "turned":
        others.append(recognizer(np.asarray(image)))
    for (face,) in others:
        np.testing.assert_allclose(face.probabilities, expected.probabilities, atol=1e-6)
        assert face.box == expected.box


def test_many_across_processes_equals_one_by_one(recognizer, pictures):
    empty = np.full((60, 60, 3), 128, np.uint8)
    mixed = [pictures[0], empty, np.hstack([np.asarray(Image.open(p).convert("RGB")) for p in pictures[1:3]])]
    alone = [recognizer(image) for image in mixed * 5]
    together = list(recognizer.many(iter(mixed * 5), batch=4, workers=2))
    assert [len(faces) for faces in together] == [len(faces) for faces in alone] == [1, 0, 2] * 5
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.box == b.box and a.expression == b.expression
            np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)


def test_many_takes_an_endless_stream(recognizer, pictures):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield pictures[taken % 2]

    answers = recognizer.many(endless(), batch=2)
    assert all(len(next(answers)) == 1 for _ in range(6))
    assert taken < 60
    answers.close()


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.zeros((0, 4, 3), "u1"), r"uint8 \[0, 4, 3\]"),
        (np.zeros((3, 224, 224), "f4"), r"float32 \[3, 224, 224\]: move the channels to the last axis"),
        (np.zeros((2, 4, 4, 3), "u1"), r"uint8 \[2, 4, 4, 3\]"),
        (np.zeros((4, 4, 3), complex), "complex128"),
        (np.zeros(9, "u1"), r"uint8 \[9\]"),
        (torch.zeros(3, 8, 8), "a Tensor is not an image"),
        (None, "a NoneType is not an image"),
    ],
)
def test_arrays_that_are_not_images(recognizer, image, why):
    with pytest.raises(ValueError, match=why):
        recognizer(image)
    with pytest.raises(ValueError, match=why):
        list(recognizer.many([image]))


_FORKED = """
import multiprocessing, signal, sys
import numpy as np
from PIL import Image
from fercli import Recognizer
recognizer = Recognizer.load(sys.argv[1], device="cpu")
image = np.tile(np.asarray(Image.open(sys.argv[2]).convert("RGB")), (3, 3, 1))
signal.alarm(80)
def answer(_):
    signal.alarm(80)
    again = Recognizer.load(sys.argv[1], device="cpu")
    return [len(recognizer(image)), len(again(image)), *map(len, recognizer.many([image]))]
before = len(recognizer(image))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(before, pool.map(answer, range(2)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_may_use_it(trained, pictures):
    """Regression: PyTorch's threads do not exist in the child, which waited for them forever."""
    command = [sys.executable, "-c", _FORKED, str(trained.runs), str(pictures[0])]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "9 [[9, 9, 9], [9, 9, 9]]\n"


def test_a_forked_process_has_no_gpu(recognizer, pictures, monkeypatch):
    cut = see(pictures[0], recognizer.options, recognizer.with_crops)
    monkeypatch.setattr(recognizer, "device", torch.device("cuda"))
    monkeypatch.setattr(recognizer, "_process", os.getppid())
    with pytest.raises(FercliError, match=r"CUDA does not work in a forked process: start processes .*'spawn'"):
        recognizer.answer(cut)


def test_files_that_cannot_be_read(recognizer, tmp_path):
    (tmp_path / "bad.jpg").write_text("no")
    for path, why in ((tmp_path / "bad.jpg", "not an image"), (tmp_path / "none.jpg", "no such file")):
        with pytest.raises(FercliError, match=why):
            recognizer(path)
        with pytest.raises(FercliError, match=why):
            list(recognizer.many([path]))


def test_the_package_exports_it_and_nothing_else():
    assert "Recognizer" in fercli.__all__
    with pytest.raises(AttributeError):
        fercli.nothing  # noqa: B018
