"""Oulu-CASIA NIR-VIS (Zhao et al., Image and Vision Computing 2011): 80 subjects, six sequences each; our split.

A sequence goes from neutral to peak. As usual with this dataset, its last three frames stand for the expression and
its first frame for neutral: 1,920 images under one lighting and camera. There is no official split (papers draw ten
folds of subjects), so the split is ours: a fifth of the subjects is for testing, by
`fercli.datasets.sequences.split_of`.
"""

from __future__ import annotations

import re
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.protocol import Protocol
from fercli.datasets.reader import Collector, Reader, WrongLayout, WrongOption
from fercli.datasets.sequences import PEAK_HELP, SPLIT_HELP, add_sequence, check_options, frames_of, part_of, protocol
from fercli.datasets.tree_files import first_existing, subfolders
from fercli.expressions import label_of

#: One subject in ONE_IN is for testing.
ONE_IN = 5
_SPECTRA, _LIGHTINGS = ("VL", "NI"), ("Strong", "Weak", "Dark")
#: Where the archives unpack to: the original images, then the dataset's own crops.
_ORIGINAL = ("", "OriginalImg/", "B_OriginalImg/OriginalImg/", "B_OriginalImg/", "Oulu_CASIA_NIR_VIS/")
_CROPPED = ("", "PreProcess_Img/", "PreProcess Img/", "PreProcessImg/", "PreProcess/")
_SUBJECT = re.compile(r"[Pp]\d+")


def parse(
    root: Path,
    collector: Collector,
    spectrum: str = "VL",
    lighting: str = "Strong",
    peak: int = 3,
    split: str = "subject",
) -> Protocol:
    """Read the sequences of one camera under one lighting.

    Args:
        root: contains VL/ and NI/, or the folder that the archives unpack to. The original images are preferred to the
            dataset's own crops (VL_Acropped/), because fercli aligns faces itself.
        collector: receives the records.
        spectrum: ``VL`` (visible light) or ``NI`` (near infrared).
        lighting: ``Strong``, ``Weak`` or ``Dark``.
        peak: how many frames at the end of a sequence show its expression.
        split: ``subject`` (adapted to train, scored on test) or ``all`` (one split for both, as with JAFFE).
    """
    check_options(peak, split)
    for name, value, known in (("spectrum", spectrum, _SPECTRA), ("lighting", lighting, _LIGHTINGS)):
        if value not in known:
            raise WrongOption(f"option {name} is '{value}', not one of {', '.join(known)}")
    folder = first_existing(
        root,
        *(f"{prefix}{spectrum}/{lighting}" for prefix in _ORIGINAL),
        *(f"{prefix}{spectrum}_Acropped/{lighting}" for prefix in _CROPPED),
    )
    if folder is None:
        raise WrongLayout(f"no {spectrum}/{lighting}/")
    cropped = folder.parent.name == f"{spectrum}_Acropped"
    for subject in subfolders(folder):
        for sequence in subfolders(subject):
            frames = frames_of(sequence, root, collector)
            label = label_of(sequence.name)
            if not _SUBJECT.fullmatch(subject.name):
                collector.leave_out("image outside a subject folder (P001, P002, ...)", len(frames))
            elif label is None:
                collector.leave_out_class(sequence.name, len(frames))
            elif not frames:
                collector.leave_out("sequence without frames")
            else:
                prefix = f"{spectrum}/{lighting}/{subject.name}/{sequence.name}"
                part = part_of(subject.name, ONE_IN, split)
                add_sequence(collector, frames, label, peak, prefix, subject.name, part, cropped=cropped)
    return protocol(split)


READER = Reader(
    layout="VL/Strong/P001/Anger/000.jpeg ... (and NI/, Weak/, Dark/), possibly below OriginalImg/ or B_OriginalImg/, "
    "or the crops PreProcess_Img/VL_Acropped/",
    parse=parse,
    tree="""\
VL/                                          visible light, and NI/ near infrared
  Strong/                                    and Weak/ Dark/
    P001/Anger/000.jpeg ...                  and Disgust/ Fear/ Happiness/ Sadness/ Surprise/
                                             possibly all below OriginalImg/ or B_OriginalImg/

or the dataset's own crops:
PreProcess_Img/VL_Acropped/Strong/P001/Anger/000.jpeg ...""",
    option_help={
        "spectrum": "VL (visible light) or NI (near infrared)",
        "lighting": "Strong, Weak or Dark",
        "peak": PEAK_HELP,
        "split": SPLIT_HELP,
    },
    card=DatasetCard(
        title="Oulu-CASIA NIR&VIS facial expression database",
        about="posed sequences, 80 people",
        apply="https://www.oulu.fi/cmvs/node/41319",
        licence="research; agreement signed",
        split="fercli's, by subject",
        split_note="a fifth for testing, frozen: papers draw their own ten folds",
        paper="Zhao, Huang, Taini, Li and Pietikäinen: Facial expression recognition from near-infrared videos. "
        "Image and Vision Computing 2011",
        # paper: 80 subjects with six expressions under every lighting; three frames per sequence, the first as neutral
        releases=(
            Official.of_whole((240, 240, 240, 240, 240, 240, 480), "three frames at the peak, first as neutral"),
        ),
        subjects=80,
    ),
)
