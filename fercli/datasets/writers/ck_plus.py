"""CK+: the release's sequences, and the folders called "CK+48"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fercli.datasets.writers.common import Subjects, code_of, codes_outside, cropped, grey, made, whole, write_image
from fercli.datasets.writers.points import sixty_eight
from fercli.expressions import EXPRESSIONS
from fercli.faces.synthetic import Face

_NEUTRAL = EXPRESSIONS.index("neutral")
#: CK+48's folders in the order of `EXPRESSIONS`; the release has no neutral one.
_FOLDERS = ("surprise", "fear", "disgust", "happy", "sadness", "anger")
_BLOCKS = ((50, 122), (124, 138), (147, 149), (154, 158), (501, 506))
_SINGLE = (5, 10, 11, 14, 22, 26, 28, 29, 32, 34, 35, 37, 42, 44, 45, 46, 139, 151, 160, 895, 999)
#: The release's 123 subjects, S005 to S999.
CK_PLUS_SUBJECTS = tuple(
    f"S{number:03d}" for number in sorted((*_SINGLE, *(n for a, b in _BLOCKS for n in range(a, b + 1))))
)


def write_ck_plus(
    root: str | Path,
    labelled: Iterable[Sequence[Face]],
    contempt: Iterable[Sequence[Face]] = (),
    unlabelled: Iterable[Sequence[Face]] = (),
) -> Path:
    """Write CK+ as released (Lucey et al., CVPRW 2010), from sequences of one person's faces, neutral to peak.

    ``cohn-kanade-images/S005/001/S005_001_00000011.png`` in grey; 68 landmarks a frame, ``x y`` a line, in
    ``Landmarks/S005/001/S005_001_00000011_landmarks.txt``; and the code of a labelled sequence, which is its last
    frame's, in ``Emotion/S005/001/S005_001_00000011_emotion.txt``. An unlabelled one has an empty folder below
    ``Emotion``. Identities become `CK_PLUS_SUBJECTS` in the order in which they first come.

    Returns:
        The root.

    Raises:
        FercliError: the root exists already and is not empty.
        ValueError: a labelled sequence is neutral, a sequence has no frames or shows two people, or there are more
            than 123 people.
    """
    codes, outside = code_of("ck+"), codes_outside("ck+")[0]
    with whole(root, "CK+") as folder:
        for kind, below, frames in _numbered(labelled, contempt, unlabelled):
            images, points, emotions = (
                made(folder / name / below) for name in ("cohn-kanade-images", "Landmarks", "Emotion")
            )
            for number, face in enumerate(frames, 1):
                stem = f"{below.replace('/', '_')}_{number:08d}"
                write_image(images / f"{stem}.png", grey(face.image))
                rows = (f"   {x:.7e}   {y:.7e}\n" for x, y in sixty_eight(face.landmarks).tolist())
                (points / f"{stem}_landmarks.txt").write_text("".join(rows))
            if kind != "unlabelled":
                code = outside if kind == "contempt" else codes[frames[-1].label]
                (emotions / f"{stem}_emotion.txt").write_text(f"   {code:.7e}\n")
    return Path(root)


def write_ck_plus_48(
    root: str | Path, labelled: Iterable[Sequence[Face]], contempt: Iterable[Sequence[Face]] = ()
) -> Path:
    """Write "CK+48": the last three frames of every labelled sequence, 48x48 grey, in a folder per expression.

    ``anger/S005_001_00000011.png``; there are anger, contempt, disgust, fear, happy, sadness and surprise, and no
    neutral. Returns the root; raises as `write_ck_plus`.
    """
    with whole(root, "CK+48") as folder:
        for name in (*_FOLDERS, "contempt"):
            made(folder / name)
        for kind, below, frames in _numbered(labelled, contempt, ()):
            name = "contempt" if kind == "contempt" else _FOLDERS[frames[-1].label]
            for number, face in list(enumerate(frames, 1))[-3:]:
                file = f"{below.replace('/', '_')}_{number:08d}.png"
                write_image(folder / name / file, grey(cropped(face, 48, 48)[0]))
    return Path(root)


def _numbered(
    labelled: Iterable[Sequence[Face]], contempt: Iterable[Sequence[Face]], unlabelled: Iterable[Sequence[Face]]
) -> Iterator[tuple[str, str, Sequence[Face]]]:
    """Yield kind, place (``S005/001``) and frames of every sequence."""
    subjects = Subjects("CK+", CK_PLUS_SUBJECTS)
    takes: Counter[str] = Counter()
    for kind, group in (("labelled", labelled), ("contempt", contempt), ("unlabelled", unlabelled)):
        for frames in group:
            subject = subjects.of_all(frames)
            if kind == "labelled" and frames[-1].label == _NEUTRAL:
                raise ValueError("no sequence of CK+ ends in neutral: its first frames are the neutral ones")
            takes[subject] += 1
            yield kind, f"{subject}/{takes[subject]:03d}", frames
