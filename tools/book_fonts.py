"""The fonts that come with the book: cut down by the build to the characters that pages may use."""

from __future__ import annotations

import hashlib
import shutil
from itertools import groupby, product
from pathlib import Path
from typing import Any

import fontpkg
import matplotlib
from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib.instancer import instantiateVariableFont
from sphinx.application import Sphinx

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FAMILIES = [
    ("Book Text", "Source Sans 3", "DejaVuSans"),
    ("Book Code", "Source Code Pro", "DejaVuSansMono"),
]
"""The families of the pages, what each is cut from, and what has the rest of it, such as ★."""
WEIGHTS = [(400, "100 500", ".ttf"), (600, "501 900", "-Bold.ttf")]
"""The weights that are drawn, those that they stand for, and the file that has the rest."""
EVERYWHERE = [("Book Text", "normal", weight) for weight in (400, 600)]
EVERYWHERE += [("Book Code", "normal", 400)]

# Latin, punctuation, superscripts, arrows, operators, boxes, stars; Greek; check marks.
BLOCKS = [(0x20, 0x7E), (0xA0, 0x17F), (0x391, 0x3C9), (0x2010, 0x203A), (0x2070, 0x209C)]
BLOCKS += [(0x2190, 0x22FF), (0x2500, 0x25FF), (0x2605, 0x2606), (0x2713, 0x2717)]
CHARACTERS = {character for first, last in BLOCKS for character in range(first, last + 1)}


def cut(source: Path, characters: set[int], family: str, weight: int) -> TTFont:
    """Return a font with some characters of another, in one of its weights, without its ligatures.

    So text that is copied from the PDF has the letters that were written. The licences keep the
    names of the originals for what is unchanged: this one has a name of its own.
    """
    options = subset.Options(
        hinting=False, bidi_closure=False, layout_features=["ccmp", "kern", "mark", "mkmk"]
    )
    options.drop_tables += ["FFTM"]  # notes of the program that DejaVu was drawn with
    font = subset.load_font(source, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=characters)
    cutter.subset(font)
    if "fvar" in font:  # one weight alone is drawn as a font in the PDF, not as shapes
        font = instantiateVariableFont(font, {"wght": weight}, inplace=True)
    for record in font["name"].names:
        if record.nameID in (1, 3, 4, 16):
            record.string = family
        elif record.nameID in (6, 25):
            record.string = family.replace(" ", "")
    font.flavor = "woff2"
    return font


def ranges(characters: set[int]) -> str:
    """Return characters as a style sheet's `unicode-range`."""
    runs = groupby(enumerate(sorted(characters)), lambda pair: pair[1] - pair[0])
    ends = [[character for _, character in run] for _, run in runs]
    return ", ".join(f"U+{run[0]:X}-{run[-1]:X}" for run in ends)


def write(folder: Path) -> list[str]:
    """Write the fonts, their licences and the style sheet that names them.

    A font is named after what it was made from, and made only where it is not there yet. Returns
    the names of those that every page begins with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet, first = "", []
    for (family, name, rest), style, (weight, weights, end) in product(
        FAMILIES, ("normal", "italic"), WEIGHTS
    ):
        main = fontpkg.path(name, style=style)
        shutil.copy(main.parent.parent / "LICENSE", folder / f"licence {name}.txt")
        missing = CHARACTERS
        for source in (main, DEJAVU / f"{rest}{end}"):
            with TTFont(source) as font:
                characters = missing & font.getBestCmap().keys()
            missing = missing - characters
            inside = ranges(characters)
            made_from = inside.encode() + source.read_bytes() + Path(__file__).read_bytes()
            digest = hashlib.sha256(made_from).hexdigest()[:8]
            file = folder / f"{family}-{weight}-{digest}.woff2".lower().replace(" ", "-")
            if not file.exists():
                with cut(source, characters, family, weight) as font:
                    font.save(file)
            if source is main and (family, style, weight) in EVERYWHERE:
                first.append(file.name)
            sheet += (
                f'@font-face {{ font-family: "{family}"; font-style: {style}; '
                f"font-weight: {weights}; font-display: swap; "
                f'src: url("{file.name}") format("woff2"); unicode-range: {inside}; }}\n'
            )
    shutil.copy(DEJAVU / "LICENSE_DEJAVU", folder / "licence DejaVu.txt")
    (folder / "fonts.css").write_text(sheet)
    return first


def bring_fonts(app: Sphinx) -> None:
    """Write the fonts before the pages, which name them and ask for the first of them at once."""
    if app.builder.format != "html":
        return
    first = write(Path(app.outdir) / "_static" / "fonts")

    def preload(
        app: Sphinx,
        page: str,
        template: str,
        context: dict[str, Any],
        doctree: nodes.document | None,
    ) -> None:
        context["metatags"] = context.get("metatags", "") + "".join(
            '<link rel="preload" as="font" type="font/woff2" crossorigin '
            f'href="{context["pathto"](f"_static/fonts/{name}", resource=True)}">\n'
            for name in first
        )

    app.connect("html-page-context", preload)
    app.add_css_file("fonts/fonts.css")


def setup(app: Sphinx) -> dict[str, bool]:
    """Bring the fonts with every page."""
    app.connect("builder-inited", bring_fonts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
