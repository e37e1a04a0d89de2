"""The code in a model card: from an image to the aligned face, and from there to the prediction. A test runs it."""

from __future__ import annotations

import json

from fercli.spec import Spec

_CROPS = 'np.save("crops.npy", local_crops(photograph, matrix, landmarks, size={side}, zoom={zoom:g}))\n'


def preparing(spec: Spec, crop_size: int | None) -> str:
    """Return code that makes face.png, landmarks.npy and any crops.npy from photograph.png and points.npy."""
    size = spec.prepare.size
    names, matrix = {
        "template": (["template_matrix"], f"template_matrix(points, size={size}, margin=0)"),
        "box": (
            ["box_matrix", "box_of_points", "released_box"],
            f"box_matrix(released_box(box_of_points(points), photograph.shape[1::-1]), size={size}, margin=0)",
        ),
    }[spec.prepare.align]
    names += ["local_crops"] * (crop_size is not None) + ["transform", "warp"]
    crops = "" if crop_size is None else _CROPS.format(side=crop_size, zoom=spec.prepare.crop_zoom)
    return f"""\
import numpy as np
from PIL import Image

from fercli.faces.align import {", ".join(sorted(names))}

photograph = np.asarray(Image.open("photograph.png").convert("RGB"))
points = np.load("points.npy")  # the five landmarks in pixels of the photograph, [5, 2]
matrix = {matrix}
landmarks = transform(matrix, points)
Image.fromarray(warp(photograph, matrix, {size})).save("face.png")
np.save("landmarks.npy", landmarks)
{crops}"""


def using(name: str, kind: str, crop_size: int | None) -> str:
    """Return code that predicts face.png, landmarks.npy (and crops.npy) with the file `name` of format `kind`."""
    inputs = ["faces", "landmarks"] + ["crops"] * (crop_size is not None)
    reading = (
        'face = np.asarray(Image.open("face.png").convert("RGB"))\n'
        'landmarks = np.load("landmarks.npy").astype(np.float32)\n'
        + ('crops = np.load("crops.npy")\n' if crop_size is not None else "")
    )
    values = ["face", *inputs[1:]]
    if kind == "onnx":
        fed = ", ".join(f'"{each}": {value}[None]' for each, value in zip(inputs, values, strict=True))
        return f"""\
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession({json.dumps(name)}, providers=["CPUExecutionProvider"])
expressions = json.loads(session.get_modelmeta().custom_metadata_map["expressions"])
{reading}answer, probabilities, stage, heads = session.run(None, {{{fed}}})
print(expressions[answer[0]], probabilities[0].round(3))
"""
    return f"""\
import json

import numpy as np
import torch
from PIL import Image

extra = {{"fercli.json": ""}}
program = torch.export.load({json.dumps(name)}, extra_files=extra).module()
expressions = json.loads(json.loads(extra["fercli.json"])["expressions"])
{reading}with torch.no_grad():
    answer, probabilities, stage, heads = program(*(torch.tensor(each)[None] for each in ({", ".join(values)})))
print(expressions[answer[0]], probabilities[0].numpy().round(3))
"""
