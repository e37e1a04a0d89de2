"""Hostile texts, odd folders and closed streams: specs, labels, circular links, names with terminal control codes."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fercli, run
from PIL import Image
from trees import encoded, touch, write

from fercli import console, media
from fercli.cli import main
from fercli.datasets import read_dataset
from fercli.errors import FercliError, SpecError
from fercli.models.reading import shown
from fercli.predict.inputs import find_inputs
from fercli.spec import load, to_yaml
from fercli.spec.schema import LARGEST
from fercli.spec.yaml_data import MAX_BYTES

NOBODY = io.BytesIO()

# YAML

_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
_MERGED = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
_CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(2000))

#: {case: (contents of a spec file, part of the error)}.
TEXTS = {
    "an invalid date": ("name: x\nengine: {seed: 2024-99-99}", "line 2: 2024-99-99 is not a date"),
    "a date for a name": ("name: 2024-01-01", "write it in quotes, '2024-01-01'"),
    "a word for a number": ("engine:\n  seed: !!int abc", "line 2: abc is not an integer"),
    "a word for a truth value": ("a: !!bool maybe", "maybe is not true or false"),
    "no date at all": ("a: !!timestamp abc", "abc is not a date"),
    "nothing for a number": ("a: !!float ''", "nothing is not a number"),
    "5,000 digits": (f"engine: {{seed: {'9' * 5000}}}", "more than 64 bits"),
    "5,000 hexadecimal digits": (f"engine: {{seed: 0x{'f' * 5000}}}", "more than 64 bits"),
    "2^64": (f"engine: {{seed: {1 << 64}}}", "more than 64 bits"),
    "2^63": (f"engine: {{seed: {1 << 63}}}", f"less than or equal to {LARGEST}"),
    "a sweep's seed": (f"sweep: {{methods: [dann], seeds: [0, {1 << 63}]}}", "sweep.seeds.1"),
    "deep brackets": ("a: " + "[" * 100_000, "more than 32 deep"),
    "deep braces": ("a: " + "{a: " * 20_000, "more than 32 deep"),
    "deep aliases": (_CHAIN, "more than 32 deep"),
    "aliases that explode": (_LAUGHS, "after its aliases (*name) are expanded"),
    "merges that explode": (_MERGED, "after its aliases (*name) are expanded"),
    "an alias of itself": ("a: &a [*a]", "*a refers to a value that contains it"),
    "a path with a zero byte": ('paths: {runs: "a\\0b"}', "zero byte"),
    "half a surrogate pair": ('name: "\\ud800"', "half of a surrogate pair"),
    "no character": ('name: "\\U99999999"', "not a character code"),
    "bytes": ("a: !!binary gIGC", "!!binary"),
    "an infinite rate": ("train_source: {lr: .inf}", "train_source.lr.1: inf: input should be a finite number"),
    "a rate beyond floats": ("train_source: {lr: 1e999}", "finite number"),
    "an infinite weight": ("adapt: {head_weights: [.inf, 1, 1, 1, 1, 1, 1]}", "finite number"),
    "an infinite share": ("prepare: {confidence: .nan}", "finite number"),
    "a long name": (f"name: {'x' * 100_000}", "at most 200 characters"),
    "a long method": (f"adapt: {{method: {'x' * 100_000}}}", "is not known"),
    "a large file": ("#" * (MAX_BYTES + 1), "larger than 256 KiB"),
}


def refusal(content: str, tmp_path: Path) -> str:
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(SpecError) as told:
        load(str(tmp_path / "run.yaml"))
    return str(told.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", TEXTS)
def test_a_hostile_spec_is_one_short_line_that_names_the_file(case: str, tmp_path: Path) -> None:
    content, expected = TEXTS[case]
    text = refusal(content, tmp_path)
    assert expected in text and text.startswith(str(tmp_path / "run.yaml"))
    assert "\n" not in text and len(text) < 600


def test_only_the_first_of_many_problems_are_listed(tmp_path: Path) -> None:
    head, *lines = refusal("\n".join(f"k{i}: 1" for i in range(500)), tmp_path).splitlines()
    assert "500 problems" in head and len(lines) == 21 and lines[-1].strip() == "and 480 more"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "value", ["2024-99-99", "!!int abc", "9" * 5000, str(1 << 64), "[" * 5000, "&a [*a]", '"\\0"', "caf\udce9"]
)
def test_values_on_the_command_line_are_read_in_the_same_way(value: str, tmp_path: Path) -> None:
    for arguments in (
        ["train-source", "--set", f"engine.seed={value}"],
        ["datasets", "check", "folders", tmp_path, "--option", f"score={value}"],
    ):
        result = run(*arguments)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and line.startswith(f"error: {arguments[-2]} ") and len(line) < 600


def test_a_key_that_is_too_deep_is_refused() -> None:
    with pytest.raises(SpecError, match="no key of the spec is nested that deep"):
        load(None, [f"adapt.options{'.a' * 5000}=1"])


def test_the_largest_seed_is_kept_unchanged() -> None:
    spec = load(None, [f"engine.seed={LARGEST}"])
    assert spec.engine.seed == LARGEST and str(LARGEST) in to_yaml(spec)


# Numbers in label files


@pytest.mark.parametrize("name", ["²", "--5", "٣", "１", "1_0", "+1", "𝟙"])
def test_code_folders_need_ascii_digits(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "1/a.jpg", "2/b.jpg", f"{name}/c.jpg")
    listing = read_dataset("x", "folders", tmp_path, codes="raf-db")
    assert [(record.id, record.label) for record in listing] == [("1/a.jpg", 0), ("2/b.jpg", 1)]
    assert listing.left_out == {f"unknown class '{name}'": 1}


_LANDMARKS = ";".join(["1"] * 136)
_AFFECTNET = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression\n"


@pytest.mark.parametrize("word", ["²", "--5", "٣", "１", "1_0", "nan", "inf", "1e400"])
@pytest.mark.parametrize(
    ("reader", "files", "kept"),
    [
        (
            "expw",
            {
                "label/label.lst": "a.jpg 0 1 1 50 50 60 1\nb.jpg 0 {0} 1 50 50 60 1\nc.jpg {0} 1 1 50 50 60 1\n"
                "d.jpg 0 1 1 50 50 60 {0}",
                "image/origin/a.jpg": "",
            },
            {"a.jpg#0": (1, 1, 50, 50)},
        ),
        (
            "afe",
            {
                "annos/TrainTest/Train.csv": "a.jpg 1 1 50 50 1\nb.jpg {0} 1 50 50 1\nc.jpg 1 1 50 50 {0}\n",
                "annos/TrainTest/Test.csv": "t.jpg 1 1 50 50 1\n",
            },
            {"t.jpg#1,1,50,50": (1, 1, 50, 50), "a.jpg#1,1,50,50": (1, 1, 50, 50)},
        ),
        (
            "affectnet",
            {
                "training.csv": f"{_AFFECTNET}a.jpg,{{0}},1,50,50,{_LANDMARKS},1\nb.jpg,1,1,50,50,,{{0}}\n",
                "validation.csv": f"{_AFFECTNET}v.jpg,1,1,49,49,,1\n",
            },
            {"v.jpg": (1, 1, 50, 50), "a.jpg": None},
        ),
        (
            "raf-db",
            {
                "EmoLabel/list_patition_label.txt": "train_1.jpg 1\ntest_1.jpg 1\ntrain_2.jpg {0}\n",
                "Annotation/boundingbox/train_1_boundingbox.txt": "1 2 {0} 60",
                "Annotation/manual/train_1_manu_attri.txt": "1 {0}\n" * 5,
                "Image/original/train_1.jpg": "",
            },
            {"train_1.jpg": None, "test_1.jpg": None},
        ),
    ],
)  # fmt: skip
def test_boxes_and_labels_must_be_finite_with_ascii_digits(
    reader: str, files: dict[str, str], kept: dict[str, Any], word: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        write(tmp_path, name, content.replace("{0}", word))
    listing = read_dataset("x", reader, tmp_path)
    assert {record.id: record.box for record in listing} == kept
    assert all(record.landmarks is None or word not in files for record in listing)
    assert sum(listing.left_out.values()) >= 1


# Folders


def tree(root: Path) -> Path:
    """Write four images in two classes, and things not to read: circular links, thumbnails, resource forks."""
    litter = ("happy/__MACOSX/q.jpg", "happy/._a.jpg", "happy/.AppleDouble/a.jpg", "#recycle/x.jpg", "sad/Thumbs.db")
    touch(root, "happy/a.jpg", "happy/sub/b.jpg", "sad/c.jpg", "sad/sub/d.jpg")
    touch(root, "sad/@eaDir/c.jpg/SYNOPHOTO_THUMB.jpg", ".thumbnails/t.jpg", *litter)
    for link, to in {"happy/up": "..", "sad/up": "..", "here": ".", "there": ".", "loop": "loop"}.items():
        (root / link).symlink_to(to)
    return root


PICTURES = ["happy/a.jpg", "happy/sub/b.jpg", "sad/c.jpg", "sad/sub/d.jpg"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("names", [[""], ["**/*.jpg"], ["*/*.jpg", "*/sub/*.jpg"]])
def test_predict_lists_each_image_once(names: list[str], tmp_path: Path) -> None:
    tree(tmp_path)
    found = find_inputs([str(tmp_path / name) for name in names], NOBODY)
    assert sorted(one.name for one in found) == [str(tmp_path / name) for name in PICTURES]


@pytest.mark.timeout(20)
def test_a_dataset_lists_each_image_once(tmp_path: Path) -> None:
    listing = read_dataset("x", "folders", tree(tmp_path))
    assert [(record.id, record.label) for record in listing] == list(zip(PICTURES, (3, 3, 4, 4), strict=True))


def test_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "photos/y.jpg")
    for link in ("photos/a", "photos/b"):
        (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    assert [Path(path).name for path in media.walk(tmp_path / "photos")] == ["x.jpg", "y.jpg"]


@pytest.mark.timeout(60)
def test_a_tree_deeper_than_pythons_stack_is_walked(tmp_path: Path) -> None:
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        assert list(media.walk(tmp_path)) == []
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", tmp_path / "d"])  # pytest's own clean-up is recursive


def without_rights() -> None:
    """Make permissions apply to root too, by dropping CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH at the next exec."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def fercli_without_rights(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    path = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, **options.pop("environment", {})}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=environment, preexec_fn=without_rights, **options
    )


@pytest.fixture
def closed(tmp_path: Path) -> Any:
    """A folder that cannot be read, next to an image. It is made readable again after the test."""
    if sys.platform != "linux":
        pytest.skip("needs Linux capabilities")
    touch(tmp_path, "happy/a.jpg", "happy/closed/b.jpg", "sad/c.jpg")
    folder = tmp_path / "happy/closed"
    folder.chmod(0)
    try:
        if fercli_without_rights("-c", f"import os; os.listdir({str(folder)!r})").returncode == 0:
            pytest.skip("permissions do not apply here")
        yield folder
    finally:
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_read_is_reported(closed: Path) -> None:
    root = closed.parents[1]
    code = (
        "import sys, io; from fercli.predict.inputs import find_inputs\n"
        f"for one in find_inputs([{str(root)!r}], io.BytesIO()): print(one.name, one.problem, sep='|')"
    )
    said = fercli_without_rights("-c", code).stdout.splitlines()
    why = "the folder cannot be read: Permission denied"
    assert said == [f"{root}/happy/a.jpg|None", f"{closed}|{why}", f"{root}/sad/c.jpg|None"]
    done = fercli_without_rights("-m", "fercli", "datasets", "check", "folders", root)
    assert (done.returncode, done.stderr) == (1, f"error: folders: {closed} cannot be read: Permission denied\n")


def test_a_working_folder_that_cannot_be_read_does_not_matter(closed: Path) -> None:
    touch(closed.parents[1], "data/happy/a.jpg")
    code = f"import os; os.chdir({str(closed)!r}); from fercli.__main__ import run; run()"
    closed.chmod(0o300)  # may be entered but not listed, and then not even entered
    arguments = ("datasets", "check", "folders", closed.parents[1] / "data")
    leave = f"import os; os.chdir({str(closed)!r}); os.chmod('.', 0); from fercli.__main__ import run; run()"
    for script in (code, leave):
        done = fercli_without_rights("-c", script, *arguments)
        assert done.returncode == 0 and "No listed file is missing" in done.stdout, done.stderr


def test_a_working_folder_that_was_deleted_does_not_matter(tmp_path: Path, trained) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "gone").mkdir()
    script = "import os; os.chdir({0!r}); os.rmdir({0!r}); from fercli.__main__ import run; run()"
    command = ("predict", tmp_path / "a.png", "--run", trained.runs, "--workers", "1", "--device", "cpu")
    done = fercli_without_rights("-c", script.format(str(tmp_path / "gone")), *command)
    assert done.returncode == 0 and '"faces": []' in done.stdout, done.stderr


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000", "TIFF", "BMP", "PPM", "PCX", "SGI", "WEBP", "GIF"])
def test_the_bytes_of_any_image_on_stdin(form: str) -> None:
    try:
        data = encoded(np.full((60, 80, 3), 200, np.uint8), form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {form}")
    (one,) = find_inputs(["-"], io.BytesIO(data))
    assert (one.name, one.kind, one.data) == ("-", "picture", data)


@pytest.mark.parametrize("first", ["P1 at the lake.jpg", "GIF8.png", "BMW.jpg", "II.jpg", "P5 12 34.png"])
def test_a_list_of_paths_on_stdin_is_not_an_image(first: str) -> None:
    found = find_inputs(["-"], io.BytesIO(f"{first}\nb.jpg\r\n".encode()))
    assert [one.name for one in found] == [first, "b.jpg"]


# Terminals

#: ESC, CSI as one byte, DEL, a bell, a text direction override, a line separator.
CONTROLS = "a\x1b[2Jb\x9bc\x7fd\x07e\u202ef\u2028g\rh"
SHOWN = r"a\x1b[2Jb\x9bc\x7fd\x07e\u202ef\u2028g\rh"


def test_names_never_control_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_S", 0)
    console.say(CONTROLS)
    console.warn(CONTROLS)
    console.error(CONTROLS)
    with console.progress(CONTROLS, 2) as bar:
        bar.advance(1, CONTROLS)
    console.table(CONTROLS, [CONTROLS, "b"], [[CONTROLS, 1], ["*" + CONTROLS, 2]], CONTROLS)
    console.show(f"[bold]{CONTROLS}[/]")
    out, err = capsys.readouterr()
    assert all(sign.isprintable() or sign == "\n" for sign in out + err)
    assert err.count(SHOWN) == 5 and out.count(SHOWN) >= 5
    assert console.brief(f"{CONTROLS}\n", 99) == SHOWN + r"\n" == shown(f"{CONTROLS}\n")


@pytest.mark.parametrize("text", ["naïve ☃ 😀", "می\u200cخواهم", "👩\u200d🔬", "東京\u3000駅", "two\nlines"])
def test_ordinary_text_is_shown_unchanged(text: str) -> None:
    assert console.plain(text) == text


def test_file_names_are_escaped_for_the_terminal(tmp_path: Path) -> None:
    touch(tmp_path, "happy/a.jpg", "x\x1b[31m/b.jpg", "happy/c.x\x1b")
    result = run("datasets", "check", "folders", str(tmp_path))
    assert result.exit_code == 0 and r"x\x1b[31m" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    result = run("predict", str(tmp_path / "no\x1b[2Jsuch.jpg"))
    assert result.exit_code == 1 and r"no\x1b[2Jsuch.jpg" in result.stderr and "\x1b" not in result.stderr


# Streams


def in_shell(redirected: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = f'"$0" -m fercli "$@" {redirected}'
    whole = ["sh", "-c", command, sys.executable, *map(str, arguments)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=100, env=environment, cwd=cwd)


COMMANDS = {
    "help": ("--help",),
    "version": ("--version",),
    "datasets": ("datasets", "show", "jaffe"),
    "json": ("datasets", "--json"),
    "init": ("init", "-"),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("redirected", "why"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")])
def test_an_unwritable_stdout_is_a_one_line_error(command: str, redirected: str, why: str) -> None:
    done = in_shell(redirected, *COMMANDS[command])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot print the results on stdout: {why}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("redirected", ["2>&-", "<&-", "2>&- <&-"])
def test_other_closed_streams_do_not_matter(redirected: str, tmp_path: Path) -> None:
    touch(tmp_path, "happy/a.jpg")
    done = in_shell(redirected, "datasets", "check", "folders", tmp_path)
    assert done.returncode == 0 and "No listed file is missing." in done.stdout and not done.stderr


@pytest.mark.parametrize("redirected", ["2>&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_files_are_written_even_if_streams_are_closed(redirected: str, tmp_path: Path, faces) -> None:
    from fercli.synthetic.writers import write_raf_db

    write_raf_db(tmp_path / "data/raf-db", faces[:2], faces[2:3])
    where = (f"paths.data={tmp_path / 'data'}", f"paths.prepared={tmp_path / 'out'}", "prepare.workers=1")
    arguments = [word for one in where for word in ("--set", one)]
    done = in_shell(redirected, "prepare", "--dataset", "raf-db", *arguments)
    assert done.returncode == (1 if ">&-" in redirected.split() or ">/dev/full" in redirected.split() else 0)
    assert {path.name for path in (tmp_path / "out/raf-db").iterdir()} >= {"faces.npy", "manifest.csv", "meta.json"}
    # No message was written to a file that got the descriptor of a closed stream.
    assert run("prepare", "--verify", "--dataset", "raf-db", *arguments).exit_code == 0


def test_a_closed_pipe_is_not_a_failure() -> None:
    done = in_shell("2>&1 | true; exit ${PIPESTATUS:-0}", "datasets")
    assert done.returncode == 0 and not done.stderr


def test_an_early_end_of_file_is_an_error_not_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("fercli.doctor.checks.examine", read)
    done = run_to_the_end("doctor")
    assert done == (1, "error: a file is empty or truncated (No data left in file); run the same command with --debug")


def run_to_the_end(*arguments: str) -> tuple[int, str]:
    """Return the exit code and the beginning of the error line, as from `python -m fercli`."""
    from fercli.__main__ import _told

    try:
        main(list(arguments), standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0), ""
    except FercliError as problem:
        return problem.exit_code, f"error: {problem}".partition(" to see which")[0]
    except Exception as problem:
        return 1, _told(problem)
    return 0, ""


def test_python_without_docstrings_and_assertions(tmp_path: Path) -> None:
    touch(tmp_path, "happy/a.jpg")
    for arguments in (("--help",), ("datasets", "check", "folders", tmp_path), ("init", "-")):
        done = fercli(*arguments, flags=("-OO",))
        assert done.returncode == 0 and not done.stderr, done.stderr
