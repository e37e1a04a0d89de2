"""Output files: every head's probabilities for each face, without labels. All later computations on a trained model
(decision rules, selection rules, the oracle, calibration, pseudo labels) use these files, not the network.

A stage's folder contains, in ``outputs/``,

- ``epoch-NNNN.safetensors`` for each epoch of an adaptation: outputs on the target's scored faces, on the faces that
  the selection rules watch, and on held-out source faces;
- ``start.safetensors``: the same for the starting model of an adaptation without a source;
- ``dataset-NAME.safetensors``, written at evaluation: outputs of the chosen model on the scored faces of a dataset.

Probabilities are stored as float16 logarithms, 98 bytes per face. The precision is one to two thousandths of a
probability, finer close to 1, and no small probability becomes zero. Rounding never changes a head's most probable
expression. A rule over several heads may change its prediction on one face in ten thousand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from fercli.errors import FercliError
from fercli.expressions import NUM_EXPRESSIONS
from fercli.files import write_atomically
from fercli.models import HEADS

FORMAT = 1
FOLDER = "outputs"
_MARK = "fercli.outputs"
_EPOCH = re.compile(r"epoch-([0-9]{4,9})\.safetensors")
_ALWAYS = {"scored", "held"}
_LEAST = np.finfo(np.float32).tiny


def rounded(probabilities: Tensor) -> Tensor:
    """Probabilities float [..., 7] as read back from a file, float32; see the module's docstring."""
    return _from_logs(_to_logs(probabilities))


def write_outputs(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write outputs atomically.

    Args:
        tensors: name -> probabilities [N, 7 heads, 7 expressions] (``scored`` and ``held`` among them), the learning
            status ``status`` [7, 7], or features ``...features`` [N, D].
        about: identifies the faces and the model.

    Raises:
        FercliError: the disk is full.
    """
    arrays = {name: _stored(name, tensor) for name, tensor in tensors.items()}
    # One string: safetensors writes several entries in arbitrary order, and the same run must write the same bytes.
    mark = json.dumps({"format": FORMAT, **about}, sort_keys=True)
    write_atomically(path, save(arrays, {_MARK: mark}))


def read_outputs(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file from `write_outputs`: float32 tensors, and the `about` mapping.

    Raises:
        FercliError: the file does not exist, is damaged, or was written by another version.
    """
    again = "train that stage again with --restart; in a sweep, remove its folder first"
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {}).get(_MARK, "{}"))
            if not isinstance(about, dict) or about.pop("format", None) != FORMAT:
                raise FercliError(f"{path} was written by another version of fercli", again)
            found = {name: _read(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            if not found.keys() >= _ALWAYS:
                raise ValueError(f"it lacks {', '.join(sorted(_ALWAYS - found.keys()))}")
    except FileNotFoundError:
        raise FercliError(f"{path} is missing", again) from None
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as problem:
        raise FercliError(f"{path} is damaged ({problem})", again) from None
    return found, about


class EpochOutputs:
    """The outputs of an adaptation's epochs, each read on access.

    Args:
        folder: the stage's.
        epochs: epochs that must exist if any do. Other epochs are used where their files exist.

    Attributes:
        paths: epoch -> file, ascending; empty where an earlier version of fercli trained the stage.
    """

    def __init__(self, folder: Path, epochs: Iterable[int] = ()):
        named = ((_EPOCH.fullmatch(path.name), path) for path in (folder / FOLDER).glob("epoch-*"))
        found = {int(match[1]): path for match, path in named if match}
        due = {epoch: epoch_file(folder, epoch) for epoch in epochs} if found else {}
        self.paths: dict[int, Path] = dict(sorted({**due, **found}.items()))

    def __getitem__(self, epoch: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """See `read_outputs`."""
        return read_outputs(self.paths[epoch])


def watched_fused(outputs: EpochOutputs) -> dict[int, Tensor]:
    """Epoch -> the fused head's probabilities float32 [N, 7] on the target faces that selection rules watch."""
    return {epoch: fused_of_watched(outputs[epoch][0]) for epoch in outputs.paths}


def fused_of_watched(tensors: Mapping[str, Tensor]) -> Tensor:
    """The same for one epoch's tensors."""
    return watched(tensors)[:, HEADS.index("fused")].clone()


def watched(tensors: Mapping[str, Tensor]) -> Tensor:
    """All heads' outputs on the faces that the rules watch: the scored faces, unless others are watched separately."""
    return tensors.get("watched", tensors["scored"])


def epoch_file(folder: Path, epoch: int) -> Path:
    """The file of an epoch's outputs in a stage's folder."""
    return folder / FOLDER / f"epoch-{epoch:04d}.safetensors"


def start_file(folder: Path) -> Path:
    """The file of the starting model's outputs in an adaptation's folder."""
    return folder / FOLDER / "start.safetensors"


def prune(folder: Path, keep: int | None, best: int) -> None:
    """Remove the outputs of all epochs except the last `keep` (None: keep all) and the best."""
    paths = EpochOutputs(folder).paths
    for epoch in sorted(paths)[: 0 if keep is None else -keep]:
        if epoch != best:
            paths[epoch].unlink(missing_ok=True)


def _stored(name: str, tensor: Tensor) -> np.ndarray:
    if name == "status" or name.endswith("features"):
        return tensor.detach().cpu().float().contiguous().numpy()
    return _to_logs(tensor)


def _read(name: str, array: np.ndarray) -> Tensor:
    heads, due = (len(HEADS), NUM_EXPRESSIONS), np.float32
    if name.endswith("features"):
        fits = array.ndim == 2
    elif name == "status":
        fits = array.shape == heads
    else:
        fits, due = array.ndim == 3 and array.shape[1:] == heads, np.float16
    if not fits or array.dtype != due or not np.isfinite(array).all():
        raise ValueError(f"{name} has unexpected values, type or shape: {array.dtype} {list(array.shape)}")
    return _from_logs(array) if due is np.float16 else torch.from_numpy(array)


def _to_logs(probabilities: Tensor) -> np.ndarray:
    exact = probabilities.detach().cpu().float().numpy()
    logs = np.log(np.maximum(exact, _LEAST)).astype(np.float16)
    best = exact.argmax(-1)[..., None]
    ties = logs >= np.take_along_axis(logs, best, -1)
    np.put_along_axis(ties, best, False, -1)
    return np.where(ties, np.nextafter(logs, np.float16(-np.inf)), logs)


def _from_logs(logs: np.ndarray) -> Tensor:
    return torch.from_numpy(logs).float().softmax(-1)
