"""Sliders that move a figure with a kernel behind it, and on a page without one."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from icrl_lib.checks import check_count

LARGEST = 1_000_000
"""Characters of HTML that one slider may take."""

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"

# The picture and the words of the first frame stand in the page; the script only exchanges them. It
# waits for the end of the task, as some front ends run it before they attach the output. JupyterLab
# would take the arrow keys for its own, were its shortcuts not suppressed where the focus is.
PAGE = """\
<div id="{id}" style="max-width: 100%">
<p style="display: flex; flex-wrap: wrap; gap: 0.75em; align-items: center; margin: 0 0 0.5em">
<label for="{id}-input">{label}</label>
<input id="{id}-input" type="range" min="0" max="{last}" step="1" value="{start}"
 aria-valuetext="{name}" autocomplete="off" data-lm-suppress-shortcuts="true" hidden
 style="flex: 1 1 9em; max-width: 28em">
<output for="{id}-input" aria-live="off" style="min-width: 5em">{name}</output>
</p>
{image}
</div>
<script>
setTimeout(() => {{
  const names = {names};
  const alts = {alts};
  const frames = {frames};
  for (const box of document.querySelectorAll('[id="{id}"]')) {{
    if (box.dataset.ready) continue;
    box.dataset.ready = "yes";
    const [input, output, image] = ["input", "output", "img"].map((tag) => box.querySelector(tag));
    const first = image.src;
    const show = () => {{
      image.src = frames[input.value] ?? first;
      image.alt = alts[input.value];
      output.textContent = names[input.value];
      input.setAttribute("aria-valuetext", names[input.value]);
    }};
    input.addEventListener("input", show);
    input.hidden = false;
    show();
  }}
}}, 0);
</script>"""


class Slider:
    """A figure with a slider: in a notebook a widget, on a page a few lines of JavaScript.

    Every frame is drawn once, when the slider is made, and kept as a picture. So the slider works
    without a kernel and without a network; without JavaScript the frame `start` is shown, which is
    also the one that is printed.

    Parameters
    ----------
    draw : callable
        ``draw(value)`` returns a matplotlib Figure; all figures have one size. They are closed.
    values : sequence
        The values that the slider takes, at least two.
    label : str
        What the slider sets, shown beside it.
    alt : str or callable
        Alternative text of the frames, which says what is seen: ``alt(value)``, or one text to
        which label and name are added.
    start : int
        Index of the frame that is shown at first.
    names : sequence of str, optional
        The values as the reader sees them; by default ``f"{value:g}"``.

    Raises
    ------
    ValueError
        If an argument is not as described, or if the frames take more than `LARGEST` characters.
    """

    def __init__(
        self,
        draw: Callable[[Any], Figure],
        values: Sequence[Any],
        *,
        label: str,
        alt: str | Callable[[Any], str],
        start: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        try:
            values = list(values)
        except TypeError as error:
            raise ValueError(f"values: expected a sequence, got {values!r}") from error
        if len(values) < 2:
            raise ValueError(f"values: expected at least two, got {len(values)}")
        if not callable(draw):
            raise ValueError(f"draw: expected a function of a value, got {draw!r}")
        check_count("start", start, 0)
        if start >= len(values):
            raise ValueError(f"start: expected an index below {len(values)}, got {start}")
        self.label = _words("label", label)
        self.names = _names(values, names)
        self.start = int(start)
        self.alts = [
            _words("alt", alt(value) if callable(alt) else f"{_words('alt', alt)} {label}: {name}")
            for value, name in zip(values, self.names, strict=True)
        ]
        self.frames, sizes = zip(*[_picture(draw(value)) for value in values], strict=True)
        if len(set(sizes)) > 1:
            raise ValueError(f"draw: expected figures of one size in pixels, got {set(sizes)}")
        self.size = sizes[0]
        taken = len(self.html())
        if taken > LARGEST:
            raise ValueError(
                f"draw, values: expected at most {LARGEST} characters of HTML, got {taken} for "
                f"{len(values)} frames; draw smaller or simpler figures, or fewer of them"
            )

    def __repr__(self) -> str:
        return f"Slider over {self.label}, {len(self.frames)} frames"

    def html(self) -> str:
        """Return the slider as HTML that needs nothing else: no kernel, no network, no library."""
        text = json.dumps([self.label, self.names, self.alts])
        sources: list[str | None] = [_source(frame) for frame in self.frames]
        sources[self.start] = None  # stands in the page already
        return PAGE.format(
            id="slider-" + hashlib.sha256(text.encode()).hexdigest()[:12],
            label=html.escape(self.label),
            last=len(self.frames) - 1,
            start=self.start,
            name=html.escape(self.names[self.start]),
            image=self._image(self.start),
            names=_script(self.names),
            alts=_script(self.alts),
            frames=_script(sources),
        )

    def widget(self) -> Any:
        """Return the slider as an ipywidgets box, which shows the same frames."""
        import ipywidgets

        slider = ipywidgets.SelectionSlider(
            options=[(name, index) for index, name in enumerate(self.names)],
            value=self.start,
            description=self.label,
            style={"description_width": "initial"},
            layout={"width": "auto", "max_width": "40em"},
        )
        # Not ipywidgets.Image: it has no alternative text.
        image = ipywidgets.HTML(self._image(self.start))
        slider.observe(
            lambda change: setattr(image, "value", self._image(change.new)), names="value"
        )
        return ipywidgets.VBox([slider, image])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self.html()}
        if _widgets_are_shown():
            bundle[WIDGET_VIEW] = self.widget()._repr_mimebundle_()[WIDGET_VIEW]
        return bundle

    def _image(self, index: int) -> str:
        width, height = self.size
        return (
            f'<img src="{_source(self.frames[index])}" alt="{html.escape(self.alts[index])}"\n'
            f' width="{width}" height="{height}" style="max-width: 100%; height: auto; '
            'background: white">'
        )


def _widgets_are_shown() -> bool:
    """Say whether a kernel is there, and an ipywidgets whose views are part of an output."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return False
    try:
        import ipywidgets
    except ImportError:
        return False
    return int(ipywidgets.__version__.partition(".")[0]) >= 8


def _picture(figure: Figure) -> tuple[bytes, tuple[int, int]]:
    """Return a figure as WebP and its size in pixels, and close it."""
    if not isinstance(figure, Figure):
        raise ValueError(f"draw: expected a matplotlib Figure from it, got {figure!r}")
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, facecolor="white")
    plt.close(figure)
    # A figure has few colours: 128 of them, stored without loss, are sharper and smaller than a
    # lossy picture of all.
    picture = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.convert("RGB").save(small, format="webp", lossless=True, quality=60, method=2)
    return small.getvalue(), picture.size


def _source(frame: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(frame).decode()


def _script(value: Any) -> str:
    """Return JSON that may stand inside a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _words(name: str, text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name}: expected words, got {text!r}")
    return text


def _names(values: list[Any], names: Sequence[str] | None) -> list[str]:
    if names is None:
        try:
            names = [f"{value:g}" for value in values]
        except (TypeError, ValueError):
            raise ValueError("names: expected one for each value, as not all are numbers") from None
    names = [_words("names", name) for name in names]
    if len(names) != len(values) or len(set(names)) != len(names):
        raise ValueError(f"names: expected {len(values)} that differ, got {names}")
    return names
