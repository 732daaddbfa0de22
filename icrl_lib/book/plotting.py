"""Figures: matrices as labelled blocks, prompts, curves with bands, the loop, an MDP.

One look for the whole book. Every function draws into axes or returns the figure it made; colour
is never the only carrier of meaning (line styles, labels and hatching repeat it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor

from icrl_lib.checks import check_count, check_instance, check_number, check_tensors
from icrl_lib.mdps import TabularMDP, check_policy
from icrl_lib.prompts import Layout

ROLES: dict[str, dict[str, Any]] = {
    "transformer": {"color": "#0072B2", "linestyle": "-"},
    "teacher": {"color": "#D55E00", "linestyle": "--"},
    "oracle": {"color": "#00795A", "linestyle": "-."},
    "random": {"color": "#5F5F5F", "linestyle": ":"},
}
"""Colour and line style of each role, the same in every figure."""

INK = "#222222"
FRAME = "#8A8A8A"
# Red for positive, blue for negative, near white for zero; the darkest ends are left out, because
# they look alike.
_ENDS = np.linspace(0.08, 0.92, 255)
DIVERGING = mpl.colors.ListedColormap(mpl.colormaps["RdBu_r"](_ENDS), name="signed")


def use_style() -> None:
    """Set matplotlib's defaults to the look of the book."""
    mpl.rcParams.update(
        {
            "figure.dpi": 120,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "figure.figsize": (7.0, 3.6),
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FRAME,
            "axes.labelcolor": INK,
            "axes.prop_cycle": plt.cycler(
                color=["#0072B2", "#D55E00", "#00795A", "#A34D7F", "#8A6D00", "#5F5F5F"],
                linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1))],
            ),
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E4E4E4",
            "grid.linewidth": 0.8,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "lines.linewidth": 2.0,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


def block_matrix(
    matrix: Tensor,
    rows: Sequence[tuple[str, int]],
    columns: Sequence[tuple[str, int]],
    *,
    title: str = "",
    unread: Sequence[tuple[slice, slice]] = (),
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a matrix as a heat map with its slots marked and named.

    Parameters
    ----------
    matrix : Tensor, shape (rows, columns)
        What to draw.
    rows, columns : sequence of (str, int)
        Names (LaTeX without dollar signs) and sizes of the slots along both sides.
    title : str
        Title of the axes.
    unread : sequence of (slice, slice)
        Blocks to hatch: entries that are never read.
    limit : float, optional
        Entries of this size have the darkest colour; by default the largest one.
    ax : Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    Axes
        With the image as ``ax.images[0]``.
    """
    sizes = check_tensors(matrix=(matrix, "rows columns"))
    for name, given in (("rows", rows), ("columns", columns)):
        _check_slots(name, given, sizes[name])
    if limit is not None:
        check_number("limit", limit, above=0)
    if ax is None:
        ax = plt.figure(figsize=(4.4, 4.0)).add_subplot()
    values = matrix.detach().cpu().numpy()
    limit = limit or float(np.abs(values).max()) or 1.0
    ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(True)
    for across, down in unread:
        corner = (down.start - 0.5, across.start - 0.5)
        size = (down.stop - down.start, across.stop - across.start)
        hatching: dict[str, Any] = {
            "facecolor": "#F1F1F1",
            "edgecolor": "#C4C4C4",
            "hatch": "///",
            "linewidth": 0,
        }
        ax.add_patch(Rectangle(corner, *size, **hatching))
    for slots, axis, line in ((rows, ax.yaxis, ax.axhline), (columns, ax.xaxis, ax.axvline)):
        for end in np.cumsum([size for _, size in slots])[:-1]:
            line(end - 0.5, color=FRAME, linewidth=0.8)
        axis.set_ticks(*_slot_ticks(slots))
        axis.set_tick_params(length=0, labelsize="small")
    ax.xaxis.tick_top()
    ax.set_title(title, pad=12)
    return ax


def weights(
    P: Tensor, V: Tensor, layout: Layout, *, names: tuple[str, str] = ("$P$", "$V$")
) -> Figure:
    """Draw P and V side by side, slots named, the blocks that are never read hatched (Fig. 2)."""
    check_instance("layout", layout, Layout)
    check_tensors(P=(P, f"{layout.size} {layout.size}"), V=(V, f"{layout.size} {layout.size}"))
    slots = (*layout.token, *layout.parameter)
    k, size = layout.n_token, layout.size
    unread_p = [(slice(0, size), slice(0, k))]
    unread_v = [(slice(0, k + 1), slice(0, size))]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.6))
    for ax, matrix, name, unread in zip(axes, (P, V), names, (unread_p, unread_v), strict=True):
        block_matrix(matrix, slots, slots, title=name, unread=unread, ax=ax)
        bar = figure.colorbar(ax.images[0], ax=ax, fraction=0.046, pad=0.03)
        bar.outline.set_visible(False)
    return figure


def prompt(H: Tensor, layout: Layout, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw a prompt H (D, n + 1): tokens on the left, the parameter column at the right."""
    check_instance("layout", layout, Layout)
    n = check_tensors(H=(H, f"{layout.size} columns"))["columns"] - 1
    if ax is None:
        ax = plt.figure(figsize=(6.4, 4.2)).add_subplot()
    rows = (*layout.token, *layout.parameter)
    columns = [(r"x_0,\,\ldots,\,x_{n-1}", n), (r"\tilde w", 1)]
    block_matrix(H, rows, columns, title=title, ax=ax)
    k, size = layout.n_token, layout.size
    for corner, width, height, role in (
        ((-0.5, -0.5), n, k, "transformer"),
        ((n - 0.5, k - 0.5), 1, size - k, "teacher"),
    ):
        frame: dict[str, Any] = {"fill": False, "linewidth": 2.5, "clip_on": False, "zorder": 3}
        ax.add_patch(Rectangle(corner, width, height, edgecolor=ROLES[role]["color"], **frame))
    return ax


def losses(
    steps: Tensor, values: Tensor, *, label: str | None = None, smooth: int = 1, ax: Axes
) -> Axes:
    """Draw a training loss on a logarithmic scale (Fig. 4), averaged over `smooth` entries."""
    check_count("smooth", smooth)
    for name, series in (("values", values), ("steps", steps)):
        check_instance(name, series, Tensor)
        if series.ndim != 1 or series.is_meta or series.shape != values.shape:
            raise ValueError(
                f"{name}: expected one number for each loss, got shape {tuple(series.shape)}"
            )
    if not values.is_floating_point() or values.is_sparse:
        raise ValueError(f"values: expected a dense floating-point tensor, got {values.dtype}")
    if len(values) < smooth:
        raise ValueError(f"values, smooth: expected {smooth} losses or more, got {len(values)}")
    whole = len(values) // smooth * smooth
    mean = values[:whole].reshape(-1, smooth).mean(-1).cpu().numpy()
    ax.semilogy(steps[:whole].reshape(-1, smooth)[:, -1].cpu().numpy(), mean, label=label)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel(r"loss $\frac{1}{2}\,\|$block − teacher$\|^2$")
    return ax


def returns(
    curves: Mapping[str, tuple[Tensor, Tensor] | Tensor],
    *,
    band: tuple[float, float] = (0.25, 0.75),
    ylabel: str = "expected return",
    ax: Axes | None = None,
) -> Axes:
    """Draw mean returns over MDPs against in-context updates, with a quantile band (Fig. 3).

    Parameters
    ----------
    curves : mapping of str to (Tensor, Tensor), or to Tensor
        For each name the numbers of updates (K,) and the returns (K, B); or the returns (B,) of
        one policy, whose mean is drawn as a level line. Names of `ROLES` get that role's look.
    band : tuple of float
        Quantiles over the B MDPs.
    ylabel : str
        Label of the vertical axis.
    ax : Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    Axes
    """
    check_instance("curves", curves, Mapping)
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    curves = {
        name: (torch.zeros(1), curve[None]) if isinstance(curve, Tensor) else curve
        for name, curve in curves.items()
    }
    for name, curve in curves.items():
        check_instance(f"curves[{name!r}]", curve, (tuple, list))
        shapes = [series.shape for series in curve if isinstance(series, Tensor)]
        if len(shapes) != 2 or [*map(len, shapes)] != [1, 2] or shapes[0][0] != shapes[1][0]:
            raise ValueError(
                f"curves[{name!r}]: expected numbers of updates (K,) and returns (K, B), or "
                f"returns (B,) alone, got {curve!r:.200}"
            )
    check_instance("band", band, tuple)
    if len(band) != 2:
        raise ValueError(f"band: expected two quantiles, got {band!r}")
    check_number("band[0]", band[0], at_least=0, at_most=1)
    check_number("band[1]", band[1], at_least=band[0], at_most=1)
    if ax is None:
        ax = plt.figure().add_subplot()
    for name, (updates, values) in curves.items():
        look = ROLES.get(name, {})
        mean = values.mean(-1).cpu().numpy()
        if len(mean) == 1:
            ax.axhline(mean[0], label=name, **look)
            continue
        x = updates.cpu().numpy()
        (line,) = ax.plot(x, mean, label=name, **look)
        low, high = (values.quantile(q, dim=-1).cpu().numpy() for q in band)
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.13, linewidth=0)
    ax.set_xlabel("in-context updates")
    ax.set_ylabel(ylabel)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(curves), borderaxespad=0.2)
    return ax


def loop() -> Figure:
    """Draw the loop of Fig. 1: how a policy improves while no weight changes."""
    figure = plt.figure(figsize=(8.6, 3.9))
    ax = figure.add_subplot()
    ax.set_axis_off()
    ax.set_xlim(0, 10)
    ax.set_ylim(0, 4.5)
    boxes = {
        "agent": ((0.2, 2.9), "agent\nacts by $w$", "#E8F1F8"),
        "world": ((3.75, 2.9), "MDP\nnever seen before", "#EFEFEF"),
        "prompt": ((7.3, 2.9), "prompt $H$\nwindow and $w$", "#E8F1F8"),
        "block": ((7.3, 0.4), "one attention block\n$P$, $V$ frozen", "#FBEBDD"),
        "parameters": ((3.75, 0.4), "last column\nholds the new $w$", "#E8F1F8"),
    }
    width, height = 2.5, 1.2
    for (x, y), words, color in boxes.values():
        style = "round,pad=0.02,rounding_size=0.15"
        edge: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.2}
        ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, **edge))
        ax.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=12)
    arrow: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 18,
        "linewidth": 1.8,
        "color": INK,
    }
    top, bottom = 2.9 + height / 2, 0.4 + height / 2
    for start, end in (
        ((2.75, top), (3.7, top)),
        ((6.3, top), (7.25, top)),
        ((8.55, 2.85), (8.55, 1.65)),
        ((7.25, bottom), (6.3, bottom)),
    ):
        ax.add_patch(FancyArrowPatch(start, end, **arrow))
    bend = "angle,angleA=180,angleB=90,rad=12"
    ax.add_patch(FancyArrowPatch((3.7, bottom), (1.45, 2.85), connectionstyle=bend, **arrow))
    for x, y, words in (
        (3.22, top + 0.22, "$a_i$"),
        (6.77, top + 0.22, "$s_{i+1}, r_{i+1}$"),
        (8.72, 2.25, "forward pass"),
        (1.62, 1.75, "improved policy"),
    ):
        side = "center" if y > 3 else "left"
        ax.text(x, y, words, ha=side, va="center", fontsize=11, color="#444444")
    return figure


def mdp_graph(
    mdp: TabularMDP, policy: Tensor, values: Tensor, *, index: int = 0, threshold: float = 0.12
) -> Figure:
    """Draw one MDP under a deterministic policy: states in a circle, arrows where it leads.

    Parameters
    ----------
    mdp : TabularMDP
        A batch of MDPs.
    policy : Tensor, shape (B, S, A)
        Action probabilities; the most probable action of each state is shown.
    values : Tensor, shape (B, S)
        Values of the states, written into them and shown as their colour.
    index : int
        Which MDP of the batch.
    threshold : float
        Transitions less probable than this are left out, as are those back to the same state.

    Returns
    -------
    Figure
    """
    check_instance("mdp", mdp, TabularMDP)
    check_policy(mdp, policy)
    check_tensors(**{"mdp.initial": (mdp.initial, "B S"), "values": (values, "B S")})
    check_count("index", index, at_least=0)
    if index >= mdp.batch:
        raise ValueError(f"index: expected an integer below {mdp.batch}, got {index}")
    check_number("threshold", threshold, at_least=0, at_most=1)
    actions = policy[index].argmax(-1).tolist()
    chosen = mdp.transition[index, range(mdp.n_states), actions].cpu().numpy()  # (S, S)
    v = values[index].cpu().numpy()
    angles = np.pi / 2 - 2 * np.pi * np.arange(mdp.n_states) / mdp.n_states
    places = np.stack([np.cos(angles), np.sin(angles)], -1)
    figure = plt.figure(figsize=(5.6, 5.2))
    ax = figure.add_subplot()
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.set_xlim(-1.5, 1.5)
    ax.set_ylim(-1.4, 1.4)
    for s, s_next in zip(*np.nonzero(chosen >= threshold), strict=True):
        if s == s_next:
            continue
        look: dict[str, Any] = {
            "linewidth": 5 * chosen[s, s_next],
            "color": "#44617A",
            "alpha": 0.75,
        }
        bend: dict[str, Any] = {"connectionstyle": "arc3,rad=0.15", "shrinkA": 19, "shrinkB": 19}
        head: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11}
        ax.add_patch(FancyArrowPatch(places[s], places[s_next], **look, **bend, **head))
    norm = mpl.colors.Normalize(v.min(), v.max())
    for s, (x, y) in enumerate(places):
        face = mpl.colormaps["cividis"](norm(v[s]))
        ax.add_patch(Circle((x, y), 0.17, facecolor=face, edgecolor=INK, zorder=3))
        ink = "white" if norm(v[s]) < 0.55 else "black"
        label: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 4}
        ax.text(x, y, f"{v[s]:.2f}", color=ink, fontsize=10, **label)
        ax.text(1.36 * x, 1.3 * y, f"$s={s}$\n$a^\\star={actions[s]}$", fontsize=9, **label)
    return figure


def _check_slots(name: str, slots: Sequence[tuple[str, int]], size: int) -> None:
    check_instance(name, slots, Sequence)
    for slot in slots:
        if not isinstance(slot, tuple) or len(slot) != 2 or not isinstance(slot[0], str):
            raise ValueError(f"{name}: expected pairs of a name and a size, got {slot!r}")
        check_count(f"{name}[{slot[0]!r}]", slot[1])
    total = sum(size for _, size in slots)
    if total != size:
        raise ValueError(f"{name}: expected slots of {size} entries in all, got {total}")


def _slot_ticks(slots: Sequence[tuple[str, int]]) -> tuple[list[float], list[str]]:
    """Return positions and labels of slots; neighbours too thin to be told apart share a label."""
    total = sum(size for _, size in slots)
    groups: list[list[tuple[float, str]]] = []
    end = 0
    for name, size in slots:
        middle = end + size / 2 - 0.5
        end += size
        if groups and middle - groups[-1][-1][0] < 0.05 * total:
            groups[-1].append((middle, name))
        else:
            groups.append([(middle, name)])
    positions = [sum(middle for middle, _ in group) / len(group) for group in groups]
    labels = ["$" + r",\,".join(name for _, name in group) + "$" for group in groups]
    return positions, labels
