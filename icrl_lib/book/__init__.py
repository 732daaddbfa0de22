"""What chapters are made with: executed claims, figures, sliders (the extra ``book``)."""

from icrl_lib.book import plotting
from icrl_lib.book.claims import claim
from icrl_lib.book.interactive import Slider

__all__ = ["Slider", "claim", "plotting"]
