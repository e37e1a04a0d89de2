"""Oulu-CASIA NIR&VIS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fercli.datasets.writers.common import Subjects, grey, made, whole, write_image
from fercli.expressions import EXPRESSIONS
from fercli.faces.synthetic import Face

#: Folders of the six expressions in the order of `EXPRESSIONS`.
_FOLDERS = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger")


def write_oulu_casia(
    root: str | Path, sequences: Iterable[Sequence[Face]], lights: Sequence[str] = ("VL/Strong",), below: str = ""
) -> Path:
    """Write Oulu-CASIA (Zhao et al., IVC 2011), from sequences of one person's faces, neutral to apex.

    ``VL/Strong/P001/Anger/000.jpeg`` and on; identities become P001 to P080 in the order in which they first come.

    Args:
        lights: camera (VL visible, NI infrared, which is grey) and light (Strong, Weak, Dark) of the folders to write;
            all show the same.
        below: folder between the root and these: ``OriginalImg`` is what the release's archive unpacks to.

    Returns:
        The root.

    Raises:
        FercliError: the root exists already and is not empty.
        ValueError: a sequence is neutral, has no frames, shows two people or repeats a person's expression, or there
            are more than 80 people.
    """
    subjects = Subjects("Oulu-CASIA", [f"P{number:03d}" for number in range(1, 81)])
    with whole(root, "Oulu-CASIA") as folder:
        for frames in sequences:
            label, subject = frames[-1].label, subjects.of_all(frames)
            if label >= len(_FOLDERS):
                raise ValueError("Oulu-CASIA has no neutral sequences: the first frames are neutral")
            for light in lights:
                place = folder / below / light / subject / _FOLDERS[label]
                if place.exists():
                    raise ValueError(f"{subject} shows {EXPRESSIONS[label]} twice: Oulu-CASIA has one sequence of each")
                for number, face in enumerate(frames):
                    image = grey(face.image) if light.startswith("NI") else face.image
                    write_image(made(place) / f"{number:03d}.jpeg", image)
    return Path(root)
