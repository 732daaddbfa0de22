"""Print the built book as one PDF: every page in the order of the table of contents."""

from __future__ import annotations

import argparse
import html
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml
from playwright.sync_api import Browser, Error, Page, Playwright, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import Link
from pypdf.generic import Fit

import icrl_lib

ROOT = Path(__file__).resolve().parent.parent
MARGIN = {"top": "20mm", "bottom": "22mm", "left": "20mm", "right": "20mm"}
STYLE = Path(__file__).with_name("pdf.css")
UNFOLD = """() => {
  document.querySelectorAll('details').forEach(d => { d.open = true; });
  for (const link of document.querySelectorAll('a[href*="colab.research"]')) {
    const line = link.closest('.bd-article p');
    if (line && line.textContent === link.textContent) line.classList.add('badge-line');
  }
  // Long names in tables break where they are joined.
  for (const name of document.querySelectorAll('td code span.pre'))
    name.innerHTML = name.innerHTML.replace(/(::|[._])/g, '$1<wbr>');
  // A number such as 1e-12 is not torn at its hyphen.
  for (const output of document.querySelectorAll('.cell_output pre'))
    output.innerHTML = output.innerHTML.replace(/\\d[\\d.]*e-\\d+/g, '<nobr>$&</nobr>');
}"""
READY = """async () => {
  if (window.MathJax) await MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }));
}"""
HEAD = """\
<link rel="stylesheet" href="{fonts}"><style>body {{ font-family: "Book Text", sans-serif;
font-variant-ligatures: none; margin: 0; }}</style>"""
COVER = """\
<style>h1 {{ font-size: 34pt; margin: 45mm 0 8mm; }}
h2 {{ break-before: page; }} p {{ font-size: 11pt; line-height: 1.5; max-width: 130mm; }}
img {{ display: block; margin: 18mm 0; width: 150mm; }} table {{ width: 100%; font-size: 9pt;
border-spacing: 0; }} td {{ padding: 0.3mm 0; }} td + td {{ text-align: right; }}
a {{ color: black; text-decoration: none; }}
.part td {{ font-weight: bold; padding-top: 1.5mm; }} td.inside {{ padding-left: 6mm; }}</style>
<h1>{title}</h1><p>{author}. Version {version}.</p>{image}
<p>Printed from the book at {address}. Hints, solutions and answers, which the pages fold, are open
here; a slider is shown where it starts. Text and figures: CC BY 4.0. Code: MIT licence.</p>
<h2>Contents</h2><table>{rows}</table>"""
FOOTER = """\
<style>@page {{ size: A4; margin: 0; }} body {{ font-size: 8pt; color: #444; }}
div {{ position: relative; height: 296mm; break-after: page; }}
div:last-child {{ break-after: auto; }}
span {{ position: absolute; bottom: 11mm; left: 20mm; right: 20mm; display: flex;
justify-content: space-between; }}</style>{pages}"""


class Section(NamedTuple):
    """One page of the book: its document's name, and the part that begins with it, if any."""

    document: str
    part: str = ""


def sections(toc: dict) -> list[Section]:
    """Return the pages of a table of contents, in order."""
    result = [Section(toc["root"])]
    for part in toc["parts"]:
        names: list[str] = []
        for chapter in part["chapters"]:
            names += [chapter["file"], *(below["file"] for below in chapter.get("sections", []))]
        result += [Section(name, "" if i else part["caption"]) for i, name in enumerate(names)]
    return result


def address(site: Path, section: Section) -> str:
    """Return where a page of the site lies."""
    return (site / f"{section.document}.html").as_uri()


def launch(playwright: Playwright, *arguments: str) -> Browser:
    """Start the Chromium that is installed, else Playwright's own, which is fetched if need be."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None and not Path(playwright.chromium.executable_path).exists():
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)
    # Chromium's sandbox does not start for root, as whom containers often run.
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments = ("--no-sandbox", *arguments)
    try:
        return playwright.chromium.launch(executable_path=program, args=list(arguments))
    except Error as error:
        raise SystemExit(
            f"Chromium does not start. Install it, or run `playwright install chromium`.\n{error}"
        ) from error


def printed(page: Page, **options: object) -> PdfReader:
    """Return what a page looks like on paper."""
    return PdfReader(
        io.BytesIO(page.pdf(format="A4", print_background=True, tagged=True, **options))
    )


def show(page: Page, site: Path, content: str) -> None:
    """Put what is no page of the site into the browser, in the fonts of the site."""
    fonts = (site / "_static" / "fonts" / "fonts.css").as_uri()
    page.set_content(HEAD.format(fonts=fonts) + content)
    page.evaluate(READY)


def print_section(page: Page, path: Path) -> tuple[str, PdfReader]:
    """Return the title of a page of the site and its PDF, with everything unfolded."""
    page.goto(path.as_uri())
    page.add_style_tag(path=STYLE)
    page.evaluate(UNFOLD)
    page.evaluate(READY)
    title = page.evaluate("document.querySelector('.bd-article h1').innerText").strip().rstrip("#")
    return title, printed(page, outline=True, margin=MARGIN)


def front(
    page: Page, site: Path, book: list[Section], titles: list[str], begins: list[int], cover: dict
) -> PdfReader:
    """Return cover and contents; `begins` has the index of each section's first page."""
    rows = ""
    for section, title, begin in zip(book, titles, begins, strict=True):
        if section.part:
            rows += f"<tr class=part><td colspan=2>{html.escape(section.part)}</td></tr>"
        link = f'<a href="{address(site, section)}">{html.escape(title)}</a>'
        rows += f"<tr><td class=inside>{link}</td><td>{begin + 1}</td></tr>"
    show(page, site, COVER.format(rows=rows, **cover))
    return printed(page, margin=MARGIN)


def add_footers(page: Page, site: Path, writer: PdfWriter, words: list[str]) -> None:
    """Write a number under each page but the first, and the words beside it."""
    pages = "".join(
        f"<div><span><b>{html.escape(text)}</b><b>{number}</b></span></div>"
        for number, text in enumerate(words, start=1)
    )
    show(page, site, FOOTER.format(pages=pages))
    overlay = PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True)))
    for number, (below, above) in enumerate(zip(writer.pages, overlay.pages, strict=True)):
        if number:
            below.merge_page(above)
            below.compress_content_streams()


def join_links(writer: PdfWriter, begins: dict[str, int]) -> None:
    """Let links from page to page lead to pages of the PDF; drop those to what is not printed."""
    for page in writer.pages:
        for reference in list(page.get("/Annots", [])):
            link = reference.get_object()
            file, _, _ = str(link.get("/A", {}).get("/URI", "")).partition("#")
            if not file.startswith("file:"):
                continue
            page["/Annots"].remove(reference)
            if file in begins:
                link = Link(rect=link["/Rect"], target_page_index=begins[file], fit=Fit.fit())
                writer.add_annotation(page, link)


def make(site: Path, output: Path, book: list[Section], config: dict) -> None:
    """Print the built site into one PDF."""
    with sync_playwright() as playwright, launch(playwright) as browser:
        page = browser.new_page(color_scheme="light")
        page.emulate_media(media="print", color_scheme="light")
        titles, prints = [], []
        for number, section in enumerate(book, start=1):
            title, pdf = print_section(page, site / f"{section.document}.html")
            print(f"{number}/{len(book)} {title}: {len(pdf.pages)} pages", flush=True)
            titles.append(title)
            prints.append(pdf)
        cover = cover_of(page, site / f"{book[0].document}.html", config)
        lengths = [len(pdf.pages) for pdf in prints]
        # Printed twice: how many pages the contents take decides which numbers stand in them.
        before = len(front(page, site, book, titles, lengths, cover).pages)
        begins = [before + sum(lengths[:i]) for i in range(len(book))]
        writer = PdfWriter()
        writer.append(front(page, site, book, titles, begins, cover))
        for title, pdf in zip(titles, prints, strict=True):
            writer.append(pdf, outline_item=title)
        words = [config["title"]] * before
        for title, length in zip(titles, lengths, strict=True):
            words += [title] * length
        add_footers(page, site, writer, words)
    addresses = [address(site, section) for section in book]
    join_links(writer, dict(zip(addresses, begins, strict=True)))
    writer.add_metadata({"/Title": config["title"], "/Author": config["author"]})
    output.parent.mkdir(parents=True, exist_ok=True)
    writer.write(output)
    print(f"{output}: {len(writer.pages)} pages, {output.stat().st_size / 1e6:.1f} MB")


def cover_of(page: Page, index: Path, config: dict) -> dict[str, str]:
    """Return what the cover shows; its picture is the first of the landing page."""
    page.goto(index.as_uri())
    picture = page.evaluate("document.querySelector('.bd-article img')?.src ?? ''")
    return {
        "title": html.escape(config["title"]),
        "author": html.escape(config["author"]),
        "address": html.escape(config["repository"]["url"]),
        "version": icrl_lib.__version__,
        "image": f'<img src="{picture}">' if picture else "",
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="the folder of the built pages, with index.html")
    parser.add_argument("output", type=Path, help="the PDF to write")
    arguments = parser.parse_args()
    if not (arguments.site / "index.html").is_file():
        sys.exit(f"{arguments.site}: no index.html in it. Build the book first: make book")
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    book = sections(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    make(arguments.site.resolve(), arguments.output, book, config)


if __name__ == "__main__":
    main()
