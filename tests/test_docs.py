"""README and docs: generated pages are fresh, links and commands are valid, and every page runs as printed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click
import pytest
import yaml
from clips import write_clip
from command_lines import commands, parse
from conftest import Bench
from PIL import Image

from fercli import spec
from fercli.expressions import EXPRESSIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
#: Pages that `docs/generate.py` writes: their commands are those of the help pages, which test_help.py checks.
GENERATED = {"run-spec.md", "method-reference.md", "commands.md"}


def _id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """A fenced block of a page: its language, its text, and why it is not run ('' if it is)."""

    language: str
    text: str
    not_run: str


def blocks(page: Path) -> list[Block]:
    pattern = r"(?:^<!-- not run: ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$"
    text = page.read_text(encoding="utf-8")
    return [Block(kind, body, why or "") for why, kind, body in re.findall(pattern, text, re.DOTALL | re.MULTILINE)]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def links(page: Path) -> list[str]:
    """The local targets of a page's links and images."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))
    return [link for link in found if not re.match(r"https?:|mailto:", link)]


def generator() -> ModuleType:
    described = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_every_page_is_listed() -> None:
    listed = {link for link in links(DOCS / "README.md") if link.endswith(".md") and "/" not in link}
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_generated_pages_are_fresh(name: str) -> None:
    fresh = generator().PAGES[name]()
    assert (DOCS / name).read_text(encoding="utf-8") == fresh, "run python docs/generate.py"


def test_every_key_and_option_is_on_a_generated_page() -> None:
    page = (DOCS / "run-spec.md").read_text(encoding="utf-8")
    leaves = [path for path, value in _leaves(spec.Spec().model_dump(mode="json")) if value != {} and path != "sweep"]
    assert len(leaves) > 90
    assert [path for path in leaves if f"| `{path}` |" not in page] == []


def _leaves(tree: dict, before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        path = f"{before}{key}"
        if isinstance(value, dict) and value and not path.endswith("lr"):
            yield from _leaves(value, f"{path}.")
        else:
            yield path, value


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, `code`\n\n[there](#a-heading-code) [gone](#elsewhere) [web](https://a.b/c)\n```\n[no](x)\n```\n"
    )
    assert links(page) == ["#a-heading-code", "#elsewhere"]
    assert anchors(page) == {"a-heading-code"}


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_commands_are_valid(page: Path) -> None:
    """Every command of a page, in a block or in a sentence, has options and arguments that exist."""
    lines = [line for block in blocks(page) if block.language in ("", "bash") for line in _lines(block.text)]
    in_sentences = re.findall(r"(?<!`)`(fercli [a-z][^`]*)`(?!`)", " ".join(prose(page).split()))
    for line in [*lines, *in_sentences]:
        if commands(line) and page.name not in GENERATED:
            try:
                parse(re.sub(r"\$[A-Z_]+|\bN\b", "1", line))
            except (click.MissingParameter, click.BadOptionUsage):
                assert line in in_sentences, line  # a sentence may name a command and one of its options alone
            except click.UsageError as problem:
                pytest.fail(f"{line}: {problem.format_message()}")


def _lines(text: str) -> list[str]:
    """The lines of a shell's text that run fercli, continued lines joined and substitutions taken apart."""
    joined = re.sub(r"\\\n\s*", " ", text)
    joined = re.sub(r"\$\(\(.*?\)\)|\$\(([^()]*)\)", r"\1", joined)
    return [line for line in joined.splitlines() if re.search(r"(^|\W)fercli ", line) and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_specs_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            spec.parse(yaml.safe_load(block.text))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, faces) -> Path:
    """A folder with photographs and a small twin of what ``fercli demo`` leaves, made by the same commands."""
    from fercli.synthetic.domains import LAB, STUDIO
    from fercli.synthetic.render import sample
    from fercli.synthetic.writers import write_jaffe, write_raf_db

    folder = tmp_path_factory.mktemp("world")
    demo = folder / "fercli-demo/seed-0"
    write_raf_db(demo / "data/raf-db", sample(STUDIO, 84, 0, range(12)), sample(STUDIO, 42, 1, range(12, 18)))
    write_jaffe(demo / "data/jaffe", sample(LAB, 42, 2, range(20, 26)))
    paths = {f"paths.{name}": name for name in ("data", "runs")}
    bench = Bench(demo, Path("prepared"), {**paths, "name": "demo-0"})
    bench.spec.rename(demo / "fercli.yaml")
    for place in (folder, demo):
        for name, some in (("photos", faces), ("images", faces[:7])):
            (place / name).mkdir()
            for number, face in enumerate(some):
                Image.fromarray(face.image).save(place / name / f"p{number % 2}_{EXPRESSIONS[number % 7]}_{number}.png")
                Image.fromarray(face.image).save(place / name / f"{number}.jpg")
        for number, face in enumerate(faces):
            (place / "faces" / EXPRESSIONS[number % 7]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(face.image).save(place / "faces" / EXPRESSIONS[number % 7] / f"{number}.jpg")
        Image.fromarray(faces[0].image).save(place / "photo.jpg")
        write_clip(place / "video.mp4", [face.image[:224, :208] for face in faces[:6]])
    done = _shell("fercli prepare --quiet\nfercli train-source --quiet\nfercli adapt --quiet\n", demo)
    assert done.returncode == 0, done.stdout
    return folder


def _shell(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a script of commands as a user would who activated the environment; it stops at the first that fails."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    places = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "PATH": path}
    return subprocess.run(
        ["bash", "-c", "set -e\ntrap 'echo \"FAILED: $BASH_COMMAND\"' ERR\n" + script],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=560,
        env={**os.environ, **places, "OMP_NUM_THREADS": "1"},
    )


def _script(page: Path) -> str:
    """The commands of a page in order; files that it shows are written where it shows them."""
    parts = []
    for block in blocks(page):
        if block.not_run or block.language not in ("", "python", "yaml"):
            continue
        name = re.match(r"# ([\w-]+\.(?:py|yaml))\n", block.text)
        if name:
            parts.append(f"cat > {name[1]} <<'END_OF_FILE'\n{block.text}END_OF_FILE\n")
        elif block.language == "python":
            parts.append(f"python - <<'END_OF_FILE'\n{block.text}END_OF_FILE\n")
        elif block.language == "":
            parts.append(block.text)
    return "".join(parts)


#: Pages with something to run.
_RUNNABLE = [page for page in PAGES if page.name not in GENERATED and "fercli " in _script(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", _RUNNABLE, ids=_id)
def test_a_page_runs_as_printed(page: Path, world: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", f"{world}/.", tmp_path], check=True)
    outside = page in (ROOT / "README.md", DOCS / "source-free.md")
    done = _shell(_script(page), tmp_path if outside else tmp_path / "fercli-demo/seed-0")
    assert done.returncode == 0, done.stdout[-3000:]
