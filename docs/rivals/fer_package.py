"""Time the PyPI package `fer` on a folder of pictures: its own detector and classifier, one picture at a time.

    python fer_package.py PICTURES [--labels legend.csv] [--limit 40] [--threads 1] [--keras]

Prints faces found and faces a second, after a warm-up; with labels (a csv with the columns image and emotion) also the
accuracy of the largest face, where a picture without a face counts as wrong. Reading and decoding of files is timed
apart. The weights of the classifier come inside the package; nothing is downloaded.
"""

import argparse
import csv
import os
import time
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
#: What labels may call the package's seven answers.
ALIASES = {"anger": "angry", "happiness": "happy", "sadness": "sad"}


def read_labels(path: Path) -> dict[str, str]:
    """Return the emotion of every picture's name, in the package's words."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [(Path(row["image"]).name, row["emotion"].strip().lower()) for row in csv.DictReader(file)]
    return {image: ALIASES.get(emotion, emotion) for image, emotion in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder of pictures; subfolders are read too")
    parser.add_argument("--labels", type=Path, help="a csv with the columns image and emotion")
    parser.add_argument("--limit", type=int, help="take this many pictures, spread evenly over the sorted names")
    parser.add_argument("--warm-up", type=int, default=5, help="pictures run before the clock starts (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of OpenCV and TensorFlow (default 1)")
    parser.add_argument("--keras", action="store_true", help="the full Keras model instead of the quantised TFLite one")
    options = parser.parse_args()

    paths = sorted(path for path in options.pictures.rglob("*") if path.suffix.lower() in ENDINGS)
    labels = read_labels(options.labels) if options.labels else {}
    if labels:
        paths = [path for path in paths if path.name in labels]
    if options.limit and options.limit < len(paths):
        paths = [paths[i * len(paths) // options.limit] for i in range(options.limit)]
    if not paths:
        parser.error(f"no picture in {options.pictures}" + (f" that {options.labels} names" if labels else ""))

    # Read when TensorFlow is imported.
    os.environ.update(OMP_NUM_THREADS=str(options.threads), TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    import cv2
    import tensorflow as tf
    from fer.fer import FER

    cv2.setNumThreads(options.threads)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    pipeline = FER(use_tflite=not options.keras)
    started = time.perf_counter() - start
    for path in paths[: options.warm_up]:
        pipeline.detect_emotions(cv2.imread(str(path)))

    reading = working = 0.0
    faces = found = 0
    right, seen = defaultdict(int), defaultdict(int)
    for path in paths:
        start = time.perf_counter()
        picture = cv2.imread(str(path))
        read = time.perf_counter()
        results = pipeline.detect_emotions(picture)
        working += time.perf_counter() - read
        reading += read - start
        faces += len(results)
        found += bool(results)
        if labels:
            largest = max(results, key=lambda result: result["box"][2] * result["box"][3], default=None)
            emotion = largest and max(largest["emotions"], key=largest["emotions"].get)
            seen[labels[path.name]] += 1
            right[labels[path.name]] += emotion == labels[path.name]

    model = "the Keras model" if options.keras else "the quantised TFLite model"
    print(
        f"fer {version('fer')}: OpenCV's cascade (its default detector), {model}, {options.threads} thread(s); "
        f"ready after {started:.1f} s"
    )
    print(f"{len(paths)} pictures, a face found in {found} ({found / len(paths):.1%}), {faces} faces in all")
    print(
        f"detect, classify {working:.2f} s: {len(paths) / working:.1f} pictures or {faces / working:.1f} faces a second"
    )
    print(f"with reading, {reading:.2f} s more: {faces / (working + reading):.1f} faces a second")
    if labels:
        hits, recalls = sum(right.values()), [right[emotion] / seen[emotion] for emotion in seen]
        print(
            f"accuracy {hits / len(paths):.2%} of all pictures, {hits / max(found, 1):.2%} of those with a face; "
            f"class mean {sum(recalls) / len(recalls):.2%} of all pictures"
        )


if __name__ == "__main__":
    main()
