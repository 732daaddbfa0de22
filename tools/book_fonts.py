"""The fonts that come with the book: cut down by the build to the characters that pages may use."""

from __future__ import annotations

import hashlib
import shutil
from itertools import groupby, product
from pathlib import Path

import fontpkg
import matplotlib
from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FAMILIES = [
    ("Book Text", "Source Sans 3", "DejaVuSans.ttf"),
    ("Book Code", "Source Code Pro", "DejaVuSansMono.ttf"),
]
"""The families of the pages, what each is cut from, and what has the rest of it, such as ★."""

# Latin, punctuation, superscripts, arrows, operators, boxes, stars; Greek; check marks.
BLOCKS = [(0x20, 0x7E), (0xA0, 0x17F), (0x391, 0x3C9), (0x2010, 0x203A), (0x2070, 0x209C)]
BLOCKS += [(0x2190, 0x22FF), (0x2500, 0x25FF), (0x2605, 0x2606), (0x2713, 0x2717)]
CHARACTERS = {character for first, last in BLOCKS for character in range(first, last + 1)}


def cut(source: Path, characters: set[int], family: str) -> TTFont:
    """Return a font with some of the characters of another, without its ligatures.

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


def write(folder: Path) -> None:
    """Write the fonts, their licences and the style sheet that names them.

    A font is named after what it was made from, and made only where it is not there yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet = ""
    for (family, name, rest), style in product(FAMILIES, ("normal", "italic")):
        main = fontpkg.path(name, style=style)
        shutil.copy(main.parent.parent / "LICENSE", folder / f"licence {name}.txt")
        missing = CHARACTERS
        for source in (main, DEJAVU / rest):
            with TTFont(source) as font:
                characters = missing & font.getBestCmap().keys()
            missing = missing - characters
            inside = ranges(characters)
            made_from = inside.encode() + source.read_bytes() + Path(__file__).read_bytes()
            digest = hashlib.sha256(made_from).hexdigest()[:8]
            file = folder / f"{family}-{style}-{digest}.woff2".lower().replace(" ", "-")
            if not file.exists():
                with cut(source, characters, family) as font:
                    font.save(file)
            sheet += (
                f'@font-face {{ font-family: "{family}"; font-style: {style}; '
                "font-weight: 200 900; font-display: swap; "
                f'src: url("{file.name}") format("woff2"); '
                f"unicode-range: {inside}; }}\n"
            )
    shutil.copy(DEJAVU / "LICENSE_DEJAVU", folder / "licence DejaVu.txt")
    (folder / "fonts.css").write_text(sheet)


def write_beside_pages(app: Sphinx) -> None:
    """Write the fonts before the pages that name them."""
    if app.builder.format == "html":
        write(Path(app.outdir) / "_static" / "fonts")


def setup(app: Sphinx) -> dict[str, bool]:
    """Bring the fonts with every page."""
    app.connect("builder-inited", write_beside_pages)
    app.add_css_file("fonts/fonts.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
