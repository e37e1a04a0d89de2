"""Small trained runs for tests of `fercli export`: checkpoints of networks whose batch norms have seen faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fercli.engine import checkpoint
from fercli.engine.data import open_store, view_settings
from fercli.engine.predict import predict
from fercli.engine.trained import Trained
from fercli.loading.face_dataset import FaceDataset
from fercli.methods import method_class
from fercli.models import FEATURE_SIZE, build_network
from fercli.spec import Spec, parse


def spec_of(prepared: Path, method: str = "aglrls", data: dict[str, Any] | None = None, **model: Any) -> Spec:
    """A spec with a small network; `model` changes that section."""
    return parse(
        {
            "name": "mine",
            "paths": {"prepared": str(prepared)},
            "data": {"source": "raf-db", "targets": ["jaffe"], **(data or {})},
            "model": {"backbone": "ir-small", "width": 4, **model},
            "adapt": {"method": method},
        }
    )


@torch.no_grad()
def make_run(folder: Path, spec: Spec, rule: str = "glpc", target: str | None = "jaffe") -> Path:
    """Write a checkpoint as the engine does, into the folder of a run; return that folder."""
    torch.manual_seed(0)
    network = build_network(spec.model).to(memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1  # the statistics of the one batch below
    view = prepared_faces(spec, "raf-db").plain(np.arange(16), view_settings(spec))
    logits, features = network.train()(*view.inputs)
    first, *locals_, last = network.classifiers
    for heads, said in (([first], logits[:, 0]), (locals_, logits[:, 1:6]), ([last], logits[:, 6])):
        for head in heads:
            head.weight /= said.std()  # so scaled that each stage of GLPC decides for some faces
    state = {
        "network": network.state_dict(),
        "status": torch.rand(7, 7) if rule == "glpc" and target else None,
        "decision": rule,
        "step": 70,
        "epoch": 7,
        "best": {"epoch": 7, "score": 1.25, "rule": "infomax" if target else "source-val"},
        "kind": "fercli",
        "stage": "adapt" if target else "source",
        "spec": json.loads(spec.model_dump_json()),
    }
    if target:
        state |= {"target": target, "method_name": spec.adapt.method}
        kind = method_class(spec.adapt.method)
        if kind.transforms_output:
            method = kind(spec.adapt, kind.read_options({}), FEATURE_SIZE, target_size=0)
            flat = features.flatten(1)
            for norm, means in zip(method.norms, method.means, strict=True):
                norm.train()(flat)
                means.start(flat[:7], flat)
            state["method"] = method.state_dict()
    stage = folder / (f"adapt-{target}" if target else "source")
    stage.mkdir(parents=True)
    checkpoint.save(stage / "best.ckpt", state)
    return folder


def prepared_faces(spec: Spec, name: str) -> FaceDataset:
    """All faces of a prepared store, without labels."""
    store = open_store(spec, name, labels=False)
    return FaceDataset([store], [np.arange(len(store))], torch.device("cpu"), spec.model.reads_crops)


def evaluated(trained: Trained, faces: FaceDataset) -> tuple[Tensor, ...]:
    """Answer, probabilities, stage and heads as `fercli evaluate` computes them."""
    device = torch.device("cpu")
    heads = predict(
        trained.network(device), faces, view_settings(trained.spec), 16, trained.output_transform(device)
    ).probabilities
    decision = trained.rule(heads)
    return decision.answers, decision.probabilities, decision.stages, heads


def as_given(trained: Trained, faces: FaceDataset, count: int) -> dict[str, np.ndarray]:
    """The first faces as inputs of an exported model: the middle of the stored face, cut here by hand."""
    pixels, landmarks, crops = faces.gather(np.arange(count))
    size = trained.spec.prepare.size
    margin = (pixels.shape[1] - size) // 2
    given = {
        "faces": pixels[:, margin : margin + size, margin : margin + size].numpy(),
        "landmarks": landmarks.numpy() - np.float32(margin),
    }
    return given if crops is None else {**given, "crops": crops.numpy()}
