"""MMI: sessions as downloaded, and a list of single frames as the cross-domain benchmark keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2

from fercli.datasets.writers.common import Subjects, code_of, made, whole, write_image
from fercli.expressions import EXPRESSIONS
from fercli.faces.synthetic import Face

_NEUTRAL = EXPRESSIONS.index("neutral")
_SUBJECTS = [f"S{number:03d}" for number in range(1, 76)]
#: The sessions' own files count the six expressions from 1 and go on with other states, of which this is the first.
_SCREAM = 7
_SESSION = """<?xml version="1.0" encoding="utf-8"?>
<session sessionId="{session}">
  <subject id="{subject}"/>
  <track type="Video" view="{view}" filename="{clip}.avi">
    <annotation filename="{clip}.xml"/>
  </track>
</session>
"""
_CLIP = """<?xml version="1.0" encoding="utf-8"?>
<ActionUnitCoding>
  <Metatag Name="Coder" Value="fercli"/>
{emotion}</ActionUnitCoding>
"""


def write_mmi(
    root: str | Path,
    sequences: Iterable[Sequence[Face]],
    scream: Iterable[Sequence[Face]] = (),
    unlabelled: Iterable[Sequence[Face]] = (),
    from_the_side: Iterable[Sequence[Face]] = (),
    frames: bool = True,
) -> Path:
    """Write MMI (Pantic et al., ICME 2005) as downloaded, from sequences of one person's faces, neutral to apex.

    ``Sessions/7/`` holds ``session.xml`` with the camera's view (0 frontal, 1 from the side), ``S001-002.avi``, which
    goes to the apex and back to neutral, and ``S001-002.xml``, whose Metatag named Emotion is 1 anger, 2 disgust, 3
    fear, 4 happiness, 5 sadness, 6 surprise; 7 for a sequence of `scream`; none for `unlabelled`. Sequences
    `from_the_side` only say that they are. The video's frames lie beside it, extracted as ``S001-002_00001.png``,
    unless `frames` is false. Identities become S001 to S075 in the order in which they first come.

    Returns:
        The root.

    Raises:
        FercliError: the root exists already and is not empty.
        ValueError: a labelled sequence is neutral, a sequence has no frames or shows two people, or there are more
            than 75 people.
    """
    codes, subjects, takes, session = code_of("mmi"), Subjects("MMI", _SUBJECTS), Counter(), 0
    groups = (("labelled", sequences), ("scream", scream), ("unlabelled", unlabelled), ("side", from_the_side))
    with whole(root, "MMI") as folder:
        for kind, group in groups:
            for take in group:
                subject, label = subjects.of_all(take), take[-1].label
                if label == _NEUTRAL and kind in ("labelled", "side"):
                    raise ValueError("MMI has no neutral sequences: the first and last frames are neutral")
                session, takes[subject] = session + 1, takes[subject] + 1
                clip, place = f"{subject}-{takes[subject]:03d}", made(folder / f"Sessions/{session}")
                view = 1 if kind == "side" else 0
                text = _SESSION.format(session=session, subject=int(subject[1:]), view=view, clip=clip)
                (place / "session.xml").write_text(text)
                value = "" if kind == "unlabelled" else _SCREAM if kind == "scream" else codes[label] + 1
                emotion = f'  <Metatag Name="Emotion" Value="{value}"/>\n' if value else ""
                (place / f"{clip}.xml").write_text(_CLIP.format(emotion=emotion))
                film = [*take, *reversed(take[:-1])]
                _write_video(place / f"{clip}.avi", film)
                for number, face in enumerate(film if frames else (), 1):
                    write_image(place / f"{clip}_{number:05d}.png", face.image)
    return Path(root)


def write_mmi_list(root: str | Path, faces: Iterable[Face]) -> Path:
    """Write single frames of MMI as the benchmark of Chen et al. (TPAMI 2022) lists them; no neutral ones.

    ``list/list.txt`` has a row ``S001-002_00031.jpg 5`` for each of ``images/`` (0 anger, 1 disgust, 2 fear, 3
    happiness, 4 sadness, 5 surprise); ``annos/bbox`` and ``annos/landmark_5`` its box and five points in whole pixels.
    Returns the root; raises as `write_mmi`.
    """
    codes, subjects, takes = code_of("mmi"), Subjects("MMI", _SUBJECTS), Counter()
    with whole(root, "MMI, as a list") as folder:
        images, boxes, points = (made(folder / name) for name in ("images", "annos/bbox", "annos/landmark_5"))
        with (made(folder / "list") / "list.txt").open("w") as rows:
            for face in faces:
                if face.label == _NEUTRAL:
                    raise ValueError("MMI's lists have no neutral faces")
                subject = subjects.of(face.identity)
                takes[subject] += 1
                stem = f"{subject}-{takes[subject]:03d}_00031"
                write_image(images / f"{stem}.jpg", face.image)
                (boxes / f"{stem}.txt").write_text(" ".join(str(round(v)) for v in face.box) + "\n")
                lines = (f"{round(x)} {round(y)}\n" for x, y in face.landmarks.tolist())
                (points / f"{stem}.txt").write_text("".join(lines))
                rows.write(f"{stem}.jpg {codes[face.label]}\n")
    return Path(root)


def _write_video(path: Path, film: Sequence[Face]) -> None:
    height, width = film[0].image.shape[:2]
    # OpenCV's own motion JPEG needs no codec of the system's.
    video = cv2.VideoWriter(
        str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter_fourcc(*"MJPG"), 25.0, (width, height), isColor=True
    )
    if not video.isOpened():
        raise ValueError(f"OpenCV cannot write the video {path}")
    for face in film:
        video.write(face.image[..., ::-1].copy())
    video.release()
