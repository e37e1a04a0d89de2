"""The page in a real browser: no console messages, nothing loaded, nothing too wide, quick to open.

Needs a Chromium on the PATH (Debian: ``apt-get install chromium``); without one these tests are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from report_documents import document, pictures, sweep

from fercli.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: neither chromium, chromium-browser nor google-chrome"),
]

#: Appended to copies for the tests: stores measurements in the page's title. Reading a width forces the layout.
PROBE = """<script>
const root = document.documentElement, wide = [...document.querySelectorAll("body *")].filter(
  (one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, pre, .skip, .unseen"));
const found = {
  scroll: root.scrollWidth, inner: innerWidth, wide: wide.slice(0, 5).map((one) => one.outerHTML.slice(0, 200)),
  keys: [...document.querySelectorAll("summary")].every((one) => one.tabIndex === 0),
  images: [...document.images].every((one) => one.complete && one.naturalWidth > 0),
  resources: performance.getEntriesByType("resource").map((one) => one.name), opened: performance.now()};
document.title = JSON.stringify(found);
parent.postMessage(document.title, "*");
</script></body>"""

FRAME = """<!doctype html><title>none</title><script>onmessage = (said) => {{ document.title = said.data; }};</script>
<iframe src="{name}" style="width:{width}px;height:800px;border:0"></iframe>"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """One page of each kind, by name."""
    run, several = document(), document(60, ("jaffe", "ck+"))
    made = {"run": (run, pictures(run)), "targets": (several, None), "sweep": (sweep(), None)}
    return {name: write_report(one, tmp_path_factory.mktemp(name), shown) for name, (one, shown) in made.items()}


def browse(address: str, tmp_path: Path, *options: str) -> tuple[str, list[str]]:
    """Open a page headless. Returns its DOM, and its console messages and failed requests."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    command += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line or "net::ERR" in line]


def probed(dom: str) -> dict:
    return json.loads(unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL).group(1)))


def with_probe(report: Path, folder: Path) -> Path:
    copy = folder / "copy.html"
    copy.write_text(report.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    return copy


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_nothing_is_loaded_no_messages_and_the_keyboard_reaches_every_fold(reports, kind, tmp_path):
    dom, complaints = browse(with_probe(reports[kind], tmp_path).as_uri(), tmp_path, "--window-size=1280,900")
    found = probed(dom)
    assert found["resources"] == [] and found["images"] and found["keys"] and complaints == []
    assert found["scroll"] <= found["inner"] and found["wide"] == []
    assert reports[kind].read_text(encoding="utf-8").count("<script") == 0


def test_a_console_message_would_be_noticed(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<!doctype html><script>console.error("no");</script><img src="http://fercli.invalid/a.png">')
    assert any("no" in line for line in browse(page.as_uri(), tmp_path)[1])


@pytest.mark.parametrize("kind", ["run", "targets", "sweep"])
@pytest.mark.parametrize("width", [360, 375, 768, 1024])
def test_the_page_never_scrolls_sideways(reports, kind, tmp_path, width):
    copy = with_probe(reports[kind], tmp_path)
    frame = tmp_path / "frame.html"  # a window is at least 500 pixels wide; a frame can be narrower
    frame.write_text(FRAME.format(name=copy.name, width=width))
    dom, _ = browse(frame.as_uri(), tmp_path, "--window-size=1200,900", "--virtual-time-budget=5000")
    found = probed(dom)
    assert found["inner"] == width and found["scroll"] <= width, found["wide"]


def test_a_link_opens_the_section_that_was_folded(reports, tmp_path):
    copy = tmp_path / "folded.html"
    copy.write_text(reports["run"].read_text(encoding="utf-8").replace(' class="fold" open', ' class="fold"'))
    dom, _ = browse(copy.as_uri() + "#calibration", tmp_path, "--virtual-time-budget=5000")
    opened = re.findall(r'<details class="fold" open[^>]*><summary><h2 id="([a-z-]+)"', dom)
    assert opened == ["h-calibration"]


def test_ten_thousand_faces_are_small_and_open_quickly(tmp_path):
    results = document(10_000)
    report = write_report(results, tmp_path / "report", pictures(results))
    assert report.stat().st_size < 8_000_000
    dom, complaints = browse(with_probe(report, tmp_path).as_uri(), tmp_path, "--window-size=1280,900")
    assert complaints == []
    assert probed(dom)["opened"] < 2_000 * 3, "milliseconds until laid out; 2,000 are asked, busy machines take longer"
