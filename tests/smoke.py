"""Check that an installed fercli works: a tiny demo from drawn images to a report, and a prediction; run by .ci/run.

    python tests/smoke.py

Run it in an empty folder, with the Python of an environment into which fercli was installed as the README says. It uses
the `fercli` command next to that Python and nothing from the checkout. It ends with a line of figures, or an error.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

FERCLI = Path(sys.executable).with_name("fercli.exe" if sys.platform == "win32" else "fercli")
#: Settings for every training: one epoch of a few steps.
SHORT = [
    f"{stage}.{key}" for stage in ("train_source", "adapt") for key in ("epochs=1", "steps_per_epoch=4", "batch=16")
]


def fercli(*arguments: str) -> str:
    """Run the command and return its stdout; its stderr is passed through."""
    print("+ fercli", *arguments, flush=True)
    done = subprocess.run([FERCLI, *arguments], stdout=subprocess.PIPE, text=True, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"fercli {arguments[0]} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def draw() -> None:
    """Draw a source in RAF-DB's layout and a target in JAFFE's, like the demo's but smaller."""
    from fercli.synthetic.domains import LAB, STUDIO
    from fercli.synthetic.render import sample
    from fercli.synthetic.writers import write_jaffe, write_raf_db

    train, test = (
        sample(STUDIO, 140, seed=0, identities=range(10)),
        sample(STUDIO, 42, seed=1, identities=range(10, 14)),
    )
    write_raf_db(Path("data/raf-db"), train, test)
    write_jaffe(Path("data/jaffe"), sample(LAB, 42, seed=2, identities=range(20, 24)))


def main() -> None:
    """Run the whole check."""
    import fercli as installed

    if "site-packages" not in Path(installed.__file__).parts:
        raise SystemExit(f"this is not the installed fercli: {installed.__file__}")
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([FERCLI, "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    draw()
    settings = [word for setting in SHORT for word in ("--set", setting)]
    fercli("prepare", "-c", "demo")
    fercli("train-source", "-c", "demo", *settings)
    fercli("adapt", "-c", "demo", *settings)
    fercli("evaluate", "-c", "demo", *settings, "--report")
    if not list(Path("runs").glob("*/report/report.html")):
        raise SystemExit("evaluate wrote no report")
    pictures = sorted(str(path) for path in Path("data/jaffe").rglob("*.tiff"))[:8]
    answers = [json.loads(line) for line in fercli("predict", *pictures, "--run", "starter").splitlines()]
    faces = sum(len(answer["faces"]) for answer in answers)
    if len(answers) != len(pictures) or faces < len(pictures) - 1:
        raise SystemExit(f"predict found {faces} faces in {len(pictures)} images of one face each")
    fercli("doctor", "-c", "demo")
    print(
        f"smoke: Python {platform.python_version()} on {platform.machine()}: {time.perf_counter() - started:.0f} s; "
        f"fercli --help {min(seconds):.2f} s"
    )


if __name__ == "__main__":
    main()
