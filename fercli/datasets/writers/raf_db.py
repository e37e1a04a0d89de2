"""RAF-DB's basic part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fercli.datasets.writers.common import aligned, code_of, made, whole, write_image
from fercli.faces.synthetic import Face


def write_raf_db(root: str | Path, train: Iterable[Face], test: Iterable[Face], with_aligned: bool = False) -> Path:
    """Write RAF-DB's basic part: label list, original images, five landmarks and face box an image.

    With `with_aligned` also ``Image/aligned/*_aligned.jpg``, 100x100. The attributes after the landmarks are constants,
    drawn people having none: gender 2 (unsure), race 0, age 2 (20-39). Returns the root; raises FercliError where it
    exists already and is not empty.
    """
    codes = code_of("raf-db")
    with whole(root, "RAF-DB") as folder:
        images, points, boxes = (
            made(folder / name) for name in ("Image/original", "Annotation/manual", "Annotation/boundingbox")
        )
        lines = []
        for split, faces, digits in (("train", train, 5), ("test", test, 4)):
            for number, face in enumerate(faces, 1):
                stem = f"{split}_{number:0{digits}d}"
                write_image(images / f"{stem}.jpg", face.image)
                if with_aligned:
                    write_image(made(folder / "Image/aligned") / f"{stem}_aligned.jpg", aligned(face, 100, 100)[0])
                rows = [f"{x:.3f}\t{y:.3f}" for x, y in face.landmarks.tolist()] + ["2", "0", "2"]
                (points / f"{stem}_manu_attri.txt").write_text("\n".join(rows) + "\n")
                (boxes / f"{stem}_boundingbox.txt").write_text(" ".join(f"{v:.3f}" for v in face.box) + "\n")
                lines.append(f"{stem}.jpg {codes[face.label]}\n")
        (made(folder / "EmoLabel") / "list_patition_label.txt").write_text("".join(lines))
    return Path(root)
