"""The built book in a real browser: alone on its machine, at three widths, in light and dark."""

from __future__ import annotations

import functools
import gzip
import http.server
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import matplotlib
import pytest
import yaml
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from pdf import launch  # noqa: E402

WIDTHS = {"phone": 390, "laptop": 1280, "projector": 1920}
THEMES = ("light", "dark")
LARGEST = 2_000_000
"""Bytes that a page may bring with it, its text compressed as web servers do."""


def files(entry: dict[str, Any]) -> list[str]:
    """Return a page of the table of contents, and those below it."""
    return [entry["file"], *(file for part in entry.get("sections", []) for file in files(part))]


def table_of_contents() -> list[str]:
    """Return the pages that somebody wrote."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    return [toc["root"], *(file for chapter in chapters for file in files(chapter))]


def listings() -> list[str]:
    """Return the pages with the source of the modules that the reference describes."""
    lines = (ROOT / "book" / "api.md").read_text().splitlines()
    modules = [line.split()[-1] for line in lines if "automodule::" in line]
    return [f"_modules/{module.replace('.', '/')}" for module in modules]


PAGES = [
    *table_of_contents(),
    *("genindex", "py-modindex", "search", "_modules/index"),
    *listings(),
]
every_page = pytest.mark.parametrize("name", PAGES)

# axe takes half a minute for a long chapter, nearly all of it for what it has nothing to say about:
# the parts of a formula, whose glyphs come from the style sheet, and every single word of code.
PRUNE = """() => {
  const again = [];
  const kept = new Set();
  for (const word of document.querySelectorAll("pre span")) {
    let behind = word;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
      behind = behind.parentElement;
    const kind = `${word.className} on ${getComputedStyle(behind).backgroundColor}`;
    if (kept.has(kind)) again.push(word);
    kept.add(kind);
  }
  for (const word of again) word.replaceWith(...word.childNodes);
  for (const drawn of document.querySelectorAll("mjx-math")) drawn.replaceChildren();
}"""

# Contrast depends on the colours, the size and the weight of a text alone, so one text of each kind
# is enough.
LOOK = """async (dark) => {
  const kinds = new Map();
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const style = getComputedStyle(element);
    const kind = [element.closest("a") !== null, style.color, style.fontSize, style.fontWeight];
    for (let around = element; around; around = around.parentElement) {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(around);
      if (backgroundColor !== "rgba(0, 0, 0, 0)") kind.push(backgroundColor);
      if (backgroundImage !== "none") kind.push(backgroundImage);
      if (opacity !== "1") kind.push(opacity);
    }
    if (!kinds.has(kind.join())) kinds.set(kind.join(), element);
  }
  // axe does not see MathML, which is what a screen reader is given for a formula.
  const formula = (found) => {
    const element = document.querySelector(found.target[0]);
    return element?.querySelector("math")?.textContent.trim();
  };
  const options = { resultTypes: ["violations"], preload: false };
  const contrast = ["color-contrast", "link-in-text-block"];
  const others = Object.fromEntries(contrast.map((id) => [id, { enabled: false }]));
  const found = [];
  for (const [context, more] of [
    [{ include: [...kinds.values()] }, { runOnly: contrast }],
    // Structure is the same in both themes; what has to be scrolled differs on a phone.
    [document, dark ? { runOnly: ["scrollable-region-focusable"] } : { rules: others }],
  ]) {
    for (const { id, nodes } of (await axe.run(context, { ...options, ...more })).violations) {
      for (const node of nodes) {
        if (id === "empty-table-header" && formula(node)) continue;
        found.push(`${id}: ${node.target} ${node.html.slice(0, 120)} ${node.failureSummary}`);
      }
    }
  }
  return found;
}"""

# What sticks out, for a message that helps: not what scrolls inside something else.
WIDE = """() => {
  if (document.documentElement.scrollWidth <= innerWidth) return [];
  const scrolls = (element) => {
    const around = element.parentElement;
    if (around === document.body) return false;
    return getComputedStyle(around).overflowX !== "visible" || scrolls(around);
  };
  return [...document.querySelectorAll("body *")]
    .filter((element) => element.getBoundingClientRect().right > innerWidth && !scrolls(element))
    .map((element) => `${element.tagName} ${element.textContent.trim().slice(0, 60)}`)
    .concat("the page")
    .slice(0, 5);
}"""

PAINT = "(theme) => (document.documentElement.dataset.theme = theme)"

FORMULAS = """async () => {
  await window.MathJax?.startup.promise;
  return [...document.querySelectorAll(".math")]
    .filter((formula) => !formula.querySelector("mjx-container:not(:has(mjx-merror))"))
    .map((formula) => formula.textContent);
}"""


# On a laptop a formula is seen as a whole; on a phone it may be scrolled.
CUT = """() => [...document.querySelectorAll(".bd-article mjx-container")]
  .filter((formula) => {
    if (formula.hasAttribute("display")) return formula.scrollWidth > formula.clientWidth + 1;
    let around = formula.parentElement;
    while (getComputedStyle(around).display.startsWith("inline")) around = around.parentElement;
    return formula.getBoundingClientRect().right > around.getBoundingClientRect().right + 2;
  })
  .map((formula) => formula.textContent.slice(0, 60))"""


# Characters that the book's fonts lack, with the family and style in which they stand.
FOREIGN = """() => {
  const ranges = {};
  const plain = (families) => families.split(",")[0].replaceAll('"', "");
  for (const { family, style, unicodeRange } of document.fonts)
    for (const run of unicodeRange.split(", "))
      (ranges[`${plain(family)} ${style}`] ??= []).push(
        run.slice(2).split("-").map((end) => parseInt(end, 16))
      );
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    if (!text.data.trim() || text.parentElement.closest("script, style, mjx-container")) continue;
    const { fontFamily, fontStyle } = getComputedStyle(text.parentElement);
    const face = `${plain(fontFamily)} ${fontStyle}`;
    for (const character of new Set(text.data.replace(/\\n/g, ""))) {
      const code = character.codePointAt(0);
      const within = ([first, last = first]) => first <= code && code <= last;
      if (!ranges[face]?.some(within)) found.add(`${face}: ${character}`);
    }
  }
  return [...found];
}"""

# Fonts wider than those of the book and of most machines, in their place.
WIDE_FONTS = """
@font-face { font-family: Wide; src: url(/wide/DejaVuSans.ttf); }
@font-face { font-family: Wide; font-weight: 600; src: url(/wide/DejaVuSans-Bold.ttf); }
@font-face { font-family: "Wide Code"; src: url(/wide/DejaVuSansMono.ttf); }
html {
  --pst-font-family-base: Wide !important;
  --pst-font-family-heading: Wide !important;
  --pst-font-family-monospace: "Wide Code" !important;
}"""


@dataclass
class Visit:
    """What happened on a page, and what was seen there."""

    problems: list[str]
    requests: set[str]
    formulas: list[str]
    foreign: list[str]
    cut: dict[str, list[str]]
    wide: dict[str, list[str]]
    inaccessible: dict[str, list[str]]
    sliders: list[list[dict[str, str]]]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the book, and beside it the fonts that are wider than its own; says nothing."""

    def translate_path(self, path: str) -> str:
        if path.startswith("/wide/"):
            return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / Path(path).name)
        return super().translate_path(path)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site):
    """Serve the book on this machine alone."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


BLOCKED = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""What makes Chromium reach nothing but this machine."""


@pytest.fixture(scope="module")
def browser():
    """Start one browser for all pages; without one the tests are skipped, unless it is required."""
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright, BLOCKED)
        except SystemExit as error:
            refuse = pytest.fail if os.environ.get("BOOK_REQUIRES_BROWSER") else pytest.skip
            refuse(str(error))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser, address):
    """Look at a page once; every test asks what was seen."""
    context = browser.new_context(reduced_motion="reduce", color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(120_000)
    problems: list[str] = []
    requests: list[str] = []
    page.on(
        "console",
        lambda line: (
            line.type == "error" and problems.append(f"{line.text} {line.location['url']}")
        ),
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    page.on("request", lambda request: requests.append(request.url))

    @functools.cache
    def look(name: str) -> Visit:
        problems.clear()
        requests.clear()
        page.set_viewport_size({"width": WIDTHS["laptop"], "height": 900})
        page.goto(f"{address}{name}.html")
        formulas = page.evaluate(FORMULAS)
        page.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        # Colours fade in; what counts is where they end.
        page.add_style_tag(content="* { transition: none !important; animation: none !important }")
        foreign = page.evaluate(FOREIGN)
        loaded = set(requests)
        cut, wide, inaccessible = {}, {}, {}
        # How wide things are depends on the fonts and not on the theme: two looks do for both.
        for fonts, theme, widths in (
            ("the book's fonts", "light", WIDTHS),
            ("wide fonts", "dark", ("phone", "laptop")),
        ):
            if fonts == "wide fonts":
                sheet = page.add_style_tag(content=WIDE_FONTS)
            page.evaluate(PAINT, theme)
            for width in widths:
                page.set_viewport_size({"width": WIDTHS[width], "height": 900})
                page.evaluate("document.body.offsetWidth, document.fonts.ready")
                wide[f"{width}, {fonts}"] = page.evaluate(WIDE)
                if width == "laptop":
                    cut[fonts] = page.evaluate(CUT)
        sheet.evaluate("(sheet) => sheet.remove()")
        sliders = [move(page, index) for index in range(page.locator("input[type=range]").count())]
        page.evaluate(PRUNE)
        page.evaluate(AXE_SCRIPT)
        for theme, width in zip(THEMES, ("laptop", "phone"), strict=True):
            page.evaluate(PAINT, theme)
            page.set_viewport_size({"width": WIDTHS[width], "height": 900})
            inaccessible[theme] = page.evaluate(LOOK, theme == "dark")
        return Visit(list(problems), loaded, formulas, foreign, cut, wide, inaccessible, sliders)

    yield look
    context.close()


def move(page: Page, index: int) -> list[dict[str, str]]:
    """Move a slider from end to end with the keyboard; return what it shows at every stop."""
    slider = page.locator("input[type=range]").nth(index)
    slider.focus()
    page.keyboard.press("Home")
    stops = []
    for _ in range(1 + int(slider.get_attribute("max"))):
        stops.append(
            slider.evaluate(
                """async (input) => {
                  const image = input.closest("div").querySelector("img");
                  await image.decode();
                  return {
                    picture: image.src,
                    words: image.alt,
                    value: input.getAttribute("aria-valuetext"),
                    shown: document.querySelector(`output[for="${input.id}"]`).textContent,
                    label: input.labels[0].textContent,
                  };
                }"""
            )
        )
        page.keyboard.press("ArrowRight")
    return stops


@every_page
def test_page_asks_nothing_of_others_and_nothing_goes_wrong(name, visit, address):
    seen = visit(name)
    assert [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert seen.problems == []


@every_page
def test_every_formula_is_drawn(name, visit):
    assert visit(name).formulas == []


@every_page
def test_no_formula_is_cut_off_on_a_laptop(name, visit):
    assert {fonts: what for fonts, what in visit(name).cut.items() if what} == {}


@every_page
def test_the_book_brings_a_font_for_every_character(name, visit):
    assert visit(name).foreign == []


@every_page
def test_page_is_accessible(name, visit):
    assert visit(name).inaccessible == {theme: [] for theme in THEMES}


@every_page
def test_page_is_as_wide_as_the_window(name, visit):
    assert {window: what for window, what in visit(name).wide.items() if what} == {}


@every_page
def test_page_is_light_enough_for_a_lecture_hall(name, visit, address, site):
    weights = {}
    for url in visit(name).requests:
        if url.startswith(address):
            content = (site / unquote(urlsplit(url).path).lstrip("/")).read_bytes()
            text = urlsplit(url).path.endswith((".html", ".js", ".css", ".svg"))
            weights[url] = len(gzip.compress(content, 6) if text else content)
    assert sum(weights.values()) < LARGEST, sorted(weights.items(), key=lambda item: -item[1])[:5]


@every_page
def test_sliders_move_with_the_keyboard_and_say_what_they_show(name, visit):
    for stops in visit(name).sliders:
        assert len(stops) >= 2
        for what in ("picture", "words", "value"):
            assert len({stop[what] for stop in stops}) == len(stops), what
        for stop in stops:
            assert stop["shown"] == stop["value"]
            assert stop["label"].strip()


def test_the_book_has_sliders(visit):
    """Else the test above says nothing."""
    assert sum(len(visit(name).sliders) for name in table_of_contents()) >= 2


def test_every_built_page_was_looked_at(site):
    built = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert {name for name in built if not name.startswith("_static")} == {*PAGES, "index"}


@pytest.fixture
def fresh(browser, address):
    """A reader who comes for the first time, with a machine set to dark."""
    context = browser.new_context(
        base_url=address, color_scheme="dark", reduced_motion="reduce", viewport=None
    )
    yield context.new_page()
    context.close()


def theme(page: Page) -> str:
    return page.evaluate("document.documentElement.dataset.theme")


def test_first_visit_has_the_theme_of_the_readers_machine(fresh):
    fresh.goto("index.html")
    fresh.wait_for_url("**/book/index.html")
    assert theme(fresh) == "dark"


def test_chosen_theme_stays(fresh):
    fresh.goto("book/index.html")
    while theme(fresh) == "dark":
        fresh.locator(".theme-switch-button:visible").click()
    fresh.goto("book/01_first_result.html")
    assert theme(fresh) == "light"


def test_search_finds_a_chapter_offline(fresh):
    fresh.goto("search.html?q=sarsa")
    fresh.locator("#search-results li a").first.wait_for()
    found = fresh.locator("#search-results li a").evaluate_all("all => all.map((a) => a.href)")
    assert any("05_sarsa_construction.html" in link for link in found)


def test_a_page_whose_fonts_do_not_come_is_whole(fresh):
    fresh.route("**/_static/fonts/*.woff2", lambda route: route.abort())
    fresh.goto("book/09_actor_critic_construction.html")
    assert fresh.evaluate(FORMULAS) == []
    loaded = "[...document.fonts].filter((font) => font.status === 'loaded').map((f) => f.family)"
    assert not any("Book" in family for family in fresh.evaluate(loaded))
    assert fresh.evaluate(CUT) == []
    assert fresh.evaluate(WIDE) == []


@pytest.mark.parametrize("name", ["book/index", "book/16_landscape"])
def test_focus_is_visible(name, fresh):
    """Whatever the keyboard reaches changes its look when it is reached."""
    fresh.goto(f"{name}.html")
    fresh.evaluate(FORMULAS)
    fresh.keyboard.press("Tab")  # from here on the browser shows where the keyboard is
    unchanged = fresh.evaluate(
        """() => {
          const look = (element) =>
            [element, ...element.children].map((part) => {
              const { outline, boxShadow, border, color } = getComputedStyle(part);
              return [outline, boxShadow, border, color].join();
            }).join();
          const reached = "a[href], button, input, select, summary, [tabindex='0']";
          const plain = [];
          for (const element of document.querySelectorAll(reached)) {
            if (!element.checkVisibility({ visibilityProperty: true })) continue;
            document.activeElement.blur();
            const before = look(element);
            element.focus();
            if (document.activeElement === element && look(element) === before)
              plain.push(element.outerHTML.slice(0, 150));
          }
          return plain;
        }"""
    )
    assert unchanged == []
