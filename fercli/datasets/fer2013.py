"""FER2013 (ICML 2013 challenge): the csv of pixels, or the folders of images in circulation; official splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fercli.datasets.card import DatasetCard, Official
from fercli.datasets.protocol import Protocol, default_protocol, known_split, plain_name
from fercli.datasets.reader import Collector, Reader, Record, WrongLayout
from fercli.datasets.tree_files import chosen_file, first_existing, images_under, subfolders
from fercli.expressions import label_of

#: 0 angry 1 disgust 2 fear 3 happy 4 sad 5 surprise 6 neutral.
CODES: dict[int, int | None] = {0: 5, 1: 2, 2: 1, 3: 3, 4: 4, 5: 0, 6: 6}

#: Split names by the values of the column Usage.
SPLITS = {"training": "train", "publictest": "public-test", "privatetest": "private-test"}
#: Help texts of the options file and score, also used by FERPlus.
FILE_HELP = "the csv of pixels (default: fer2013.csv or icml_face_data.csv, else the only csv with emotion and pixels)"
SCORE_HELP = "the split scored: private-test (default) or public-test"
#: Paths of the csv as the challenge and Kaggle ship it. The last comes with a train.csv and a test.csv of its rows.
_TABLES = ("fer2013.csv", "fer2013/fer2013.csv", "icml_face_data.csv")


def parse(root: Path, collector: Collector, file: str | None = None) -> Protocol:
    """Read the csv if there is one, else the folders.

    Args:
        root: contains the csv or the folders.
        collector: receives the records.
        file: the csv's name (default: fer2013.csv or icml_face_data.csv, else the only csv with emotion and pixels).

    The split private-test is scored by default. The published cross-domain lists do not say which of the two test
    splits they score, so the option score can choose the other. A csv without Usage is all training data.
    """
    table = pixel_table(root, file)
    if table is not None:
        _parse_csv(root, table, collector)
    else:
        _parse_folders(root, collector)
    present = {record.split for record in collector.records}
    return default_protocol(present) if present & {"val", "test"} else (("train",), ("private-test",))


def pixel_table(root: Path, file: str | None = None) -> Path | None:
    """Return the csv of emotions and pixels in a folder or its direct subfolders; None if there is no csv of pixels.

    Raises WrongOption if `file` does not exist, and WrongLayout if there are several such csvs.
    """
    if file is not None:
        return chosen_file(root, file)
    table = first_existing(root, *_TABLES)
    folders = (root, *subfolders(root)) if table is None else ()
    csvs = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix.lower() == ".csv"]
    pixels = [path for path in csvs if not path.name.startswith(".") and "pixels" in _columns(path)]
    tables = [path for path in pixels if "emotion" in _columns(path)]
    if len(tables) > 1:
        raise WrongLayout(
            f"several csvs with emotion and pixels ({', '.join(path.relative_to(root).as_posix() for path in tables)})",
            "name one with --option file=NAME, or in a run spec with data.datasets.{name}.options: {{file: NAME}}",
        )
    return table or next(iter(tables or pixels), None)


def usage_split(text: str) -> str | None:
    """Return the split that a word in the column Usage stands for; None if it is unknown. Case does not matter."""
    return SPLITS.get(plain_name(text)) or known_split(text)


def _parse_csv(root: Path, table: Path, collector: Collector) -> None:
    path = table.relative_to(root).as_posix()
    for number, (offset, split, code) in enumerate(pixel_rows(table)):
        if split is None:
            collector.leave_out("row of an unknown Usage" if code else "unreadable row")
            continue
        label = collector.label(CODES, code)
        if label is not None:
            collector.add(
                Record(id=f"{split}-{number:05d}", path=path, label=label, split=split, offset=offset, cropped=True)
            )


def pixel_rows(table: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, str | None, str]]:
    """Yield (byte offset, split, emotion code) of every row of a csv below its header. Blank lines are skipped.

    The split is None if Usage is not understood. If the row and the header differ in their number of fields, the split
    is None and the code is "". Without a column Usage, the split is train. Raises WrongLayout if emotion, pixels or a
    column in `needed` is missing.
    """
    columns = _columns(table)
    missing = [name for name in ("emotion", "pixels", *needed) if name.lower() not in columns]
    if missing:
        raise WrongLayout(f"{table.name} lacks the column {' and '.join(missing)}")
    emotion, usage = columns.index("emotion"), columns.index("usage") if "usage" in columns else None
    for offset, row in islice(_rows_with_offsets(table), 1, None):
        fields = row.split(b",")
        if len(fields) != len(columns):
            yield offset, None, ""
            continue
        split = "train" if usage is None else usage_split(_text(fields[usage]))
        yield offset, split, _text(fields[emotion]) or "?"


def _columns(table: Path) -> list[str]:
    """Return the names in a csv's header, in lower case."""
    with table.open("rb") as file:
        header = next((line for line in iter(lambda: file.readline(1 << 16), b"") if line.strip()), b"")
    return [_text(name).lower() for name in header.removeprefix(b"\xef\xbb\xbf").split(b",")]


def _text(field: bytes) -> str:
    return field.strip(b' "\r\n').decode("utf-8", "replace")


def _rows_with_offsets(table: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with table.open("rb") as file:
        for row in file:
            if row.strip():
                yield offset, row
            offset += len(row)


def _parse_folders(root: Path, collector: Collector) -> None:
    parts = [part for part in subfolders(root) if any(label_of(c.name) is not None for c in subfolders(part))]
    if not parts:
        raise WrongLayout("no fer2013.csv, no other csv with emotion and pixels, and no train/angry/ ... folders")
    for part in parts:
        for folder in subfolders(part):
            label = label_of(folder.name)
            for path in images_under(folder, root, collector):
                name = path.rsplit("/", 1)[-1]
                split = SPLITS.get(name.split("_", 1)[0].lower())
                if label is None:
                    collector.leave_out_class(folder.name)
                elif split is None:
                    collector.leave_out("image not named Training_, PublicTest_ or PrivateTest_")
                else:
                    collector.add(Record(id=path, path=path, label=label, split=split, cropped=True))


READER = Reader(
    layout="fer2013.csv (or another csv with emotion, pixels and Usage), or "
    "{train,validation,test}/{angry,...}/{Training,PublicTest,PrivateTest}_123.jpg",
    parse=parse,
    codes=CODES,
    tree="""\
fer2013.csv                                  columns: emotion,pixels,Usage, in any order
                                             or icml_face_data.csv, or one csv of another name;
                                             without Usage, all rows are for training

or folders:
train/
  angry/Training_3908.jpg ...                and disgust/ fear/ happy/ neutral/ sad/ surprise/
test/
  angry/PrivateTest_88305.jpg ...            PublicTest_... and PrivateTest_...""",
    option_help={"file": FILE_HELP, "score": SCORE_HELP},
    card=DatasetCard(
        title="FER2013, challenge of the ICML 2013 workshop on representation learning",
        about="web images, 48x48, grey",
        apply="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        licence="competition rules; Kaggle account needed",
        split="official",
        split_note="scored on private-test, or on public-test with the option score",
        paper="Goodfellow et al.: Challenges in representation learning: a report on three machine learning contests. "
        "ICONIP 2013",
        # field; the sums agree with the paper's totals
        releases=(
            Official.of_splits(
                train=(3171, 4097, 436, 7215, 4830, 3995, 4965),
                public_test=(415, 496, 56, 895, 653, 467, 607),
                private_test=(416, 528, 55, 879, 594, 491, 626),
            ),
        ),
    ),
)
