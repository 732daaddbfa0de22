"""Sliders: what a page gets, what a notebook gets, and what they refuse."""

import base64
import html.parser
import io
import json
import re
import sys
import types
from pathlib import Path

import IPython
import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pytest
from PIL import Image

from icrl_lib.book import interactive
from icrl_lib.book.interactive import WIDGET_VIEW, Slider

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import notebooks as tool


def bar(value):
    figure = plt.figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().bar([0], [value])
    return figure


def slider(**changes):
    arguments = {
        "draw": bar,
        "values": [1, 2.5, 4],
        "label": "height <h>",
        "alt": "A bar that grows;",
        "start": 1,
    }
    arguments.update(changes)
    return Slider(**arguments)


class Elements(html.parser.HTMLParser):
    """The attributes of every element, by tag, and the text between tags."""

    def __init__(self, text):
        super().__init__()
        self.of, self.words = {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.of.setdefault(tag, []).append(dict(attributes))

    def handle_data(self, data):
        self.words.append(data)


def constants(text):
    """Return what the page's script holds, by name."""
    found = re.findall(r"const (names|alts|frames) = (.*);\n", text)
    return {name: json.loads(value) for name, value in found}


def picture(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


@pytest.fixture
def kernel(monkeypatch):
    """An IPython shell with a kernel behind it."""
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)


def test_page_shows_the_first_frame_without_javascript():
    (image,) = Elements(slider().html()).of["img"]
    shown = picture(image["src"])
    assert (shown.format, shown.size) == ("WEBP", (100, 50))
    assert (image["width"], image["height"]) == ("100", "50")
    assert image["alt"] == "A bar that grows; height <h>: 2.5"


def test_page_holds_every_frame_once():
    text = slider().html()
    frames = constants(text)["frames"]
    assert [frame is None for frame in frames] == [False, True, False]
    assert [picture(frame).size for frame in frames if frame] == [(100, 50), (100, 50)]
    assert text.count("data:image/webp") == 3


def test_frames_follow_the_values():
    frames = slider().frames
    assert len(set(frames)) == 3
    assert slider(values=[4, 2.5, 1]).frames == frames[::-1]


def test_picture_is_white_around_the_axes_whatever_the_theme():
    def dark(value):
        return plt.figure(figsize=(1, 1), dpi=20, facecolor="black")

    source = Elements(slider(draw=dark).html()).of["img"][0]["src"]
    assert picture(source).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_control_is_a_labelled_range_that_says_its_value():
    page = Elements(slider().html())
    (control,) = page.of["input"]
    assert control["type"] == "range"
    assert (control["min"], control["max"], control["value"]) == ("0", "2", "1")
    assert control["aria-valuetext"] == "2.5"
    assert control["data-lm-suppress-shortcuts"] == "true"  # JupyterLab leaves its keys alone
    assert page.of["label"][0]["for"] == page.of["output"][0]["for"] == control["id"]
    assert "height <h>" in page.words


def test_names_and_alternative_texts_are_those_of_the_values():
    text = slider(alt=lambda value: f"height {value}", names=["low", "middle", "high"]).html()
    assert constants(text)["names"] == ["low", "middle", "high"]
    assert constants(text)["alts"] == ["height 1", "height 2.5", "height 4"]


def test_words_cannot_end_the_script():
    assert slider(alt="</script><b>").html().count("</script>") == 1


def test_page_needs_no_network():
    assert not re.search(r"https?:|src=\"(?!data:)|<link", slider().html())


def test_html_is_the_same_every_time():
    assert slider().html() == slider().html()


def test_two_sliders_on_one_page_do_not_share_an_id():
    ids = [Elements(s.html()).of["div"][0]["id"] for s in (slider(), slider(label="width"))]
    assert ids[0] != ids[1]


def test_every_figure_is_closed():
    slider()
    assert plt.get_fignums() == []


def test_without_a_kernel_there_is_html_and_one_line():
    bundle = slider()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == "Slider over height <h>, 3 frames"


@pytest.mark.usefixtures("kernel")
def test_with_a_kernel_there_is_a_widget_too():
    bundle = slider()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", WIDGET_VIEW}
    assert isinstance(bundle[WIDGET_VIEW]["model_id"], str)


@pytest.mark.usefixtures("kernel")
def test_old_widgets_fall_back_to_html(monkeypatch):
    monkeypatch.setattr(ipywidgets, "__version__", "7.7.1")
    assert set(slider()._repr_mimebundle_()) == {"text/plain", "text/html"}


def test_widget_exchanges_the_frame():
    control, image = slider().widget().children
    frames = slider().frames
    assert interactive._source(frames[1]) in image.value
    control.value = 2
    assert interactive._source(frames[2]) in image.value
    assert "height &lt;h&gt;: 4" in image.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [1]}, "values: expected at least two"),
        ({"draw": None}, "draw: expected a function"),
        ({"draw": lambda value: value}, "draw: expected a matplotlib Figure"),
        ({"draw": lambda value: plt.figure(figsize=(value, 1))}, "draw: expected figures of one"),
        ({"start": 3}, "start: expected an index below 3"),
        ({"start": -1}, "start: expected an integer of at least 0"),
        ({"label": " "}, "label: expected words"),
        ({"alt": ""}, "alt: expected words"),
        ({"alt": lambda value: None}, "alt: expected words"),
        ({"names": ["a", "b"]}, "names: expected 3 that differ"),
        ({"names": ["a", "b", "a"]}, "names: expected 3 that differ"),
        ({"names": [1, 2, 3]}, "names: expected words"),
        ({"values": ["a", "b"], "start": 0}, "names: expected one for each value"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        slider(**changes)
    plt.close("all")


def test_too_large_a_slider_is_refused(monkeypatch):
    monkeypatch.setattr(interactive, "LARGEST", len(slider().html()) - 1)
    with pytest.raises(ValueError, match=r"^draw, values: expected at most"):
        slider()


def test_stored_outputs_hold_no_widget_view():
    data = {"text/plain": "a", "text/html": "b", WIDGET_VIEW: {"model_id": "c"}}
    output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)
    cell = nbformat.v4.new_code_cell("a", outputs=[output], execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    tool.normalise(notebook)
    assert set(notebook.cells[0].outputs[0].data) == {"text/plain", "text/html"}
