"""The fonts that the build makes: what is in them, under which names, and when they are made."""

from __future__ import annotations

import re
import shutil
import sys
from io import BytesIO
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import book_fonts


@pytest.fixture(scope="module")
def folder(site, tmp_path_factory) -> Path:
    return Path(
        shutil.copytree(site / "_static" / "fonts", tmp_path_factory.mktemp("site") / "fonts")
    )


def faces(folder: Path) -> list[dict[str, str]]:
    """Return the rules of the style sheet, as maps from a property to its value."""
    rules = re.findall(r"@font-face \{(.*?)\}", (folder / "fonts.css").read_text(), re.S)
    pairs = [re.findall(r"([a-z-]+): ([^;]+);", rule) for rule in rules]
    return [dict(rule) for rule in pairs]


def characters(unicode_range: str) -> set[int]:
    runs = re.findall(r"U\+([0-9A-F]+)-([0-9A-F]+)", unicode_range)
    return {code for first, last in runs for code in range(int(first, 16), int(last, 16) + 1)}


def font(folder: Path, face: dict[str, str]) -> TTFont:
    return TTFont(BytesIO((folder / re.search(r'url\("(.+?)"\)', face["src"])[1]).read_bytes()))


def test_a_font_has_the_characters_that_the_style_sheet_promises(folder):
    for face in faces(folder):
        assert set(font(folder, face).getBestCmap()) == characters(face["unicode-range"])


def test_every_style_has_letters_greek_signs_and_boxes(folder):
    styles: dict[tuple[str, ...], set[int]] = {}
    for face in faces(folder):
        style = tuple(face[f"font-{kind}"] for kind in ("family", "style", "weight"))
        styles[style] = styles.get(style, set()) | characters(face["unicode-range"])
    assert len(styles) == 8
    for covered in styles.values():
        assert {*map(ord, "aZ0é\u2011–’…αγλφΔ²⁺₁←→≤≥≠±×√∑−─│┌█■★☆✓✗")} <= covered


def test_a_font_is_drawn_in_one_weight(folder):
    """Fonts that can be drawn in any weight are no fonts in the PDF, but shapes."""
    for face in faces(folder):
        assert "fvar" not in font(folder, face)


def test_no_font_has_the_reserved_name_of_its_original(folder):
    for face in faces(folder):
        records = font(folder, face)["name"].names
        names = [str(record) for record in records if record.nameID in (1, 3, 4, 6, 16, 25)]
        assert names
        assert {name.replace(" ", "") for name in names} == {
            face["font-family"].strip('"').replace(" ", "")
        }


def test_no_font_has_ligatures(folder):
    """Letters that are joined in a PDF are found by nobody who searches for a word."""
    for face in faces(folder):
        drawn = font(folder, face)
        features = drawn["GSUB"].table.FeatureList.FeatureRecord if "GSUB" in drawn else []
        assert {record.FeatureTag for record in features} <= {"ccmp"}


def test_licences_lie_beside_the_fonts(folder):
    texts = [path.read_text() for path in sorted(folder.glob("licence*"))]
    assert [re.search("Open Font License|Bitstream Vera", text)[0] for text in texts] == [
        "Bitstream Vera",
        "Open Font License",
        "Open Font License",
    ]


def test_a_font_that_is_there_is_not_made_again(folder, monkeypatch):
    monkeypatch.setattr(book_fonts, "cut", lambda *_: pytest.fail("made again"))
    book_fonts.write(folder)
