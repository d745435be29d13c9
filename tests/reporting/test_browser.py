"""The page in headless Chromium: nothing from outside, no overflow, keys, buttons, and names.yaml."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stages.core.artefacts import write_text
from stages.reporting.lineage import lineage
from stages.reporting.names import Names, names_text, read_names
from tests.browser import Browser, open_browser
from tests.report_inputs import VAL, K, run_report, write_report_inputs

WIDTHS = (360, 768, 1440)
GIVEN = Names({0: "stone", 1: "meadow", 2: "meadow"}, {"meadow": (16, 32, 48)})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished page; one image has a name without a gap, as long as some files have."""
    root = tmp_path_factory.mktemp("page")
    write_report_inputs(root)
    index = root / "images/val/index.csv"
    index.write_text(index.read_text().replace("<i>1.png", "a" * 120 + ".png"))
    clusters = lineage(root / "centroids.safetensors")
    write_text(root / "names.yaml", names_text(GIVEN, clusters.own))
    run_report(root)
    return root


@pytest.fixture
def page(folder: Path) -> Path:
    return folder / "report/index.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_every_width_and_asks_for_nothing(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.run("document.querySelectorAll('img').forEach((one) => { one.loading = 'eager'; })")
    browser.run("Promise.all([...document.images].map((one) => one.decode()))")
    assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
    assert browser.run("[...document.images].every((one) => one.naturalWidth > 0)")
    asked = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert all(url.startswith((page.parent.resolve().as_uri(), "data:")) for url in asked)
    for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert browser.seen(kind) == []


def test_on_paper_colors_stay_and_wide_tables_are_not_cut(browser: Browser, page: Path) -> None:
    """Browsers leave out backgrounds when they print: swatches, bars, and the cells behind white numbers."""
    browser.open(page, width=768)
    browser.send("Emulation.setEmulatedMedia", media="print")
    for kind in (".swatch", ".track", ".track > span", ".track > .tick", ".heat tbody td"):
        found = f"getComputedStyle(document.querySelector('{kind}'))"
        assert browser.run(f"{found}.printColorAdjust") == "exact", kind
    assert browser.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    browser.send("Emulation.setEmulatedMedia", media="")


def test_without_scripts_it_is_whole_and_has_no_dead_buttons(browser: Browser, page: Path) -> None:
    browser.open(page, width=768, script=False)
    tree = browser.send("DOM.getDocument")
    found = browser.send(
        "DOM.querySelectorAll", nodeId=tree["root"]["nodeId"], selector="button, select, .shot"
    )
    shown = {"button": 0, "select": 0, "li": 0}
    for node in found["nodeIds"]:
        name = browser.send("DOM.describeNode", nodeId=node)["node"]["localName"]
        try:
            browser.send("DOM.getBoxModel", nodeId=node)
        except AssertionError:  # it has no box: it is not drawn
            continue
        shown[name] += 1
    assert shown == {"button": 0, "select": 0, "li": VAL}


def test_what_a_screen_reader_needs(browser: Browser, page: Path) -> None:
    browser.open(page, width=1440)
    assert browser.run("document.documentElement.lang") == "en"
    levels = browser.run("[...document.querySelectorAll('main :is(h1,h2,h3,h4)')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.run("[...document.images].every((one) => one.hasAttribute('alt'))")
    assert browser.run(
        "[...document.querySelectorAll('input, select, textarea')].every((one) => one.labels.length)"
    )
    assert browser.run(
        "[...document.querySelectorAll('button, a')].every((one) => one.ariaLabel || one.textContent.trim())"
    )
    ids = browser.run("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    links = browser.run("[...document.querySelectorAll('a[href^=\"#\"]')].map((one) => one.hash.slice(1))")
    assert set(links) <= set(ids)


def _order(browser: Browser) -> Any:
    return browser.run(
        "[...document.querySelectorAll('.shot')].filter((one) => !one.hidden)"
        ".map((one) => [one.dataset.place, +one.dataset.score])"
    )


def test_images_are_ordered_and_filtered(browser: Browser, page: Path) -> None:
    browser.open(page, width=1440)
    choose = "(id, value) => { const one = document.getElementById(id); one.value = value; "
    choose += "one.dispatchEvent(new Event('change')); }"
    in_order = _order(browser)
    assert [place for place, _ in in_order] == ["0", "1", "2"]
    browser.run(f"({choose})('order', 'best')")
    assert _order(browser) == sorted(in_order, key=lambda one: -one[1])
    browser.run(f"({choose})('order', 'worst')")
    assert _order(browser) == sorted(in_order, key=lambda one: one[1])
    browser.run("document.querySelectorAll('.shot')[1].dataset.shows = 'c0'")
    browser.run(f"({choose})('filter', 'k1')")
    assert len(_order(browser)) == 2
    assert browser.run("document.getElementById('count').textContent") == "2 of 3 images"


def test_an_image_is_enlarged_by_key_and_by_click(browser: Browser, page: Path) -> None:
    browser.open(page, width=1440)
    name = "document.getElementById('viewer-name').textContent"
    browser.run("document.querySelector('.enlarge').focus()")
    browser.press("Enter")
    assert browser.run("document.getElementById('viewer').open")
    assert browser.run(name).startswith("<i>0.png · ")
    assert browser.run("document.querySelectorAll('#viewer-tiles .tile').length") == 5
    browser.press("ArrowRight")
    assert browser.run(name).startswith("aaaa")
    assert browser.run(
        "document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth"
    )
    browser.press("Escape")
    assert not browser.run("document.getElementById('viewer').open")
    browser.wait(f"document.activeElement.getAttribute('aria-label') === 'Enlarge {'a' * 120}.png'")
    browser.run("document.querySelectorAll('.shot .tiles img')[0].click()")
    assert browser.run(name).startswith("<i>0.png · ")


def _made(browser: Browser, fields: dict[int, str]) -> str:
    for cluster, name in fields.items():
        browser.run(f"document.querySelector('input[data-cluster=\"{cluster}\"]').value = {name!r}")
    browser.run("document.getElementById('make-names').click()")
    text: str = browser.run("document.getElementById('names-text').value")
    saved = browser.run("fetch(document.getElementById('save-names').href).then((one) => one.text())")
    assert saved == text
    return text


def test_the_form_makes_names_that_are_read(browser: Browser, page: Path, folder: Path) -> None:
    browser.open(page, width=1440)
    clusters = lineage(folder / "centroids.safetensors")
    fields = browser.run(
        "[...document.querySelectorAll('[data-cluster]')].map((one) => [+one.dataset.cluster, one.value])"
    )
    assert dict(fields) == {0: "stone", 1: "meadow", 2: "meadow", 3: "<b>&"}
    assert _made(browser, {}) == names_text(Names({**GIVEN.of, 3: "<b>&"}, GIVEN.colours), clusters.own)
    awkward = {0: 'a "b" \\ #c', 1: "  schön: [1] ", 2: "", 3: "meadow"}
    text = _made(browser, awkward)
    given = Names({0: 'a "b" \\ #c', 1: "schön: [1]", 3: "meadow"}, GIVEN.colours)
    assert text == names_text(given, clusters.own)
    write_text(folder / "made.yaml", text)
    assert read_names(folder / "made.yaml", num_clusters=K, clusters=clusters) == given
    assert _made(browser, dict.fromkeys(range(K), "")) == names_text(Names(), clusters.own)
