"""Score a public expression network on the faces of a prepared fercli store.

The network is `face_expression_model` of the npm package @vladmandic/face-api 1.7.15 (MIT): four dense blocks of
depthwise-separable convolutions, 329 kB of weights quantised to 8 bits. It is rebuilt here in torch from the package's
own weight files; it takes RGB pictures of 112 x 112 pixels.

    python public_net.py node_modules/@vladmandic/face-api/model prepared/fer2013 --split private-test
"""

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fercli.evaluation.metrics import confusion, scores
from fercli.expressions import EXPRESSIONS, label_of
from fercli.faces.images import read_image
from fercli.store import Store, read_manifest

SIZE = 112
CHANNEL_MEANS = (122.782, 117.001, 104.298)
#: The network's outputs, in the order of the package's FACE_EXPRESSION_LABELS.
OUTPUTS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
MISSING = len(EXPRESSIONS)  # the answer for a picture without a face


def read_weights(folder: Path, name: str = "face_expression_model") -> dict[str, torch.Tensor]:
    """Read weights of tfjs by name, float32; an array quantised to integers q stands for q * scale + min."""
    (group,) = json.loads((folder / f"{name}-weights_manifest.json").read_text())
    data, start, weights = b"".join((folder / path).read_bytes() for path in group["paths"]), 0, {}
    for entry in group["weights"]:
        quantised = entry.get("quantization")
        kind, shape = np.dtype((quantised or entry)["dtype"]), entry["shape"]
        values = np.frombuffer(data, kind, int(np.prod(shape)), start)
        start += values.nbytes
        if quantised:
            values = values * quantised["scale"] + quantised["min"]
        weights[entry["name"]] = torch.tensor(values.reshape(shape), dtype=torch.float32)
    if start != len(data):
        raise ValueError(f"{name}: the manifest describes {start} bytes, its files have {len(data)}")
    return weights


def convolve(x: torch.Tensor, weights: dict[str, torch.Tensor], layer: str, stride: int) -> torch.Tensor:
    """A 3 x 3 convolution with TensorFlow's padding `same`: plain or depthwise separable, whichever the layer is."""
    # For an even side and stride 2, TensorFlow pads one pixel, right and below.
    x, bias = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)), weights[f"{layer}/bias"]
    if f"{layer}/filters" in weights:  # [3, 3, in, out]
        return F.conv2d(x, weights[f"{layer}/filters"].permute(3, 2, 0, 1), bias, stride)
    depthwise = weights[f"{layer}/depthwise_filter"].permute(2, 3, 0, 1)  # from [3, 3, in, 1]
    x = F.conv2d(x, depthwise, None, stride, groups=x.shape[1])
    return F.conv2d(x, weights[f"{layer}/pointwise_filter"].permute(3, 2, 0, 1), bias)


@torch.inference_mode()
def answer(pictures: np.ndarray, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Probabilities float32 [B, 7], in fercli's order, for RGB pictures uint8 [B, 112, 112, 3]."""
    x = (torch.tensor(pictures, dtype=torch.float32) - torch.tensor(CHANNEL_MEANS)).div(255).permute(0, 3, 1, 2)
    for block in range(4):
        # Every later convolution takes what all before it gave, summed.
        total = F.relu(convolve(x, weights, f"dense{block}/conv0", stride=2))
        x = total
        for layer in (1, 2, 3):
            total = total + convolve(x, weights, f"dense{block}/conv{layer}", stride=1)
            x = F.relu(total)
    outputs = F.avg_pool2d(x, 7).flatten(1) @ weights["fc/weights"] + weights["fc/bias"]
    return outputs.softmax(1)[:, np.argsort([label_of(name) for name in OUTPUTS])]


def crops(store: Store, rows: np.ndarray, crop: str) -> Iterator[Image.Image]:
    """Yield a square picture of each of these faces, as the option --crop says."""
    kept = [entry for entry in read_manifest(store.path) if entry["status"] != "rejected"]
    for row in rows:
        stored, in_box = crop.isdecimal(), crop.startswith("box")
        path = Path(store.meta["root"]) / kept[row]["path"]
        picture = Image.fromarray(store.faces[row] if stored else read_image(path))
        box = np.array(kept[row]["box"].split() if in_box else (0, 0, *picture.size), dtype=float)
        side = int(crop) if stored else max(box[2:] - box[:2]) * (float(crop[3:]) if in_box else 1)
        corner = (box[:2] + box[2:] - side) / 2
        yield picture.crop(tuple(np.rint([*corner, *(corner + side)]).astype(int)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the package's folder model/")
    parser.add_argument("store", type=Path, help="a prepared fercli store")
    parser.add_argument("--split", help="score this part only (default: all faces)")
    parser.add_argument("--crop", default="112", help="112 (aligned face), picture, box1.1 (1.1 x the mesh's square)")
    parser.add_argument("--csv", type=Path, help="write a row for every face to this file")
    options = parser.parse_args()

    store, weights = Store.open(options.store), read_weights(options.model)
    parts = store.splits if options.split is None else [options.split]
    rows = np.flatnonzero((store.labels >= 0) & np.isin(store.splits, parts))
    resized = [crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for crop in crops(store, rows, options.crop)]
    said = torch.cat([answer(np.stack(resized[i : i + 256]), weights) for i in range(0, len(rows), 256)]).numpy()
    answers, labels, names = said.argmax(1), store.labels[rows], np.array(EXPRESSIONS)
    if options.csv:
        table = np.column_stack([store.ids[rows], store.splits[rows], names[labels], names[answers], said])
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "split", "label", "answer", *EXPRESSIONS], *table])

    rejected = [row for row in read_manifest(store.path) if row["status"] == "rejected" and row["split"] in parts]
    lost = [label for row in rejected if (label := int(row["label"] or -1)) >= 0]
    for given in (answers, np.append(answers, [MISSING] * len(lost)).astype(int)):
        truth = np.append(labels, lost).astype(int)[: len(given)]
        found = scores(confusion(truth, given, MISSING + 1), (*EXPRESSIONS, "missing"))
        figures = ", ".join(f"{name} {found[name]:.2%}" for name in ("accuracy", "mean_recall", "macro_f1"))
        what = "faces found" if given is answers else "pictures, those without a face counted as wrong"
        print(f"{store.name}, crop {options.crop}, {len(given)} {what}: {figures}")


if __name__ == "__main__":
    main()
