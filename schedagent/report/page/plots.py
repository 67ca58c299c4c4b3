"""The plots of a page: drawn by matplotlib as SVG in the page itself, coloured by the page's style, without scripts.

Every plot is drawn 360 points wide, the width of a phone, and the page lays several side by side. Labels stand above
their rows, so long names take no room from the marks. Groups of marks have ids, by which tests count them.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from schedagent.core.terminal.printable import printable
from schedagent.page.markup import text
from schedagent.report.faces.strips import logarithmic, spans
from schedagent.report.values import FRACTION, SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH_IN = 5.0
_ROW_IN, _FRAME_IN = 0.62, 0.45
_FONT_PT = 11
_MOST_TICKS, _MOST_STEPS = 6, 300
_LONGEST_LABEL = 48
_WIDE = 4
_WIDE_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_STEPS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--soft)", "#030303": "var(--line)"} | {
    f"#0404{number:02x}": f"var(--arm-{number})" for number in range(6)
}
"""What matplotlib draws in, and what the style makes of it."""
_INK, _SOFT, _LINE = list(_COLOURS)[:3]

STYLE = """
:root { --arm-0: #5c5f66; --arm-1: #0b57d0; --arm-2: #b3261e; --arm-3: #137333; --arm-4: #8430ce; --arm-5: #8a5300; }
@media (prefers-color-scheme: dark) { :root { --arm-0: #a9acb3; --arm-1: #8ab4f8; --arm-2: #ff8a80; --arm-3: #7fd18b;
  --arm-4: #d7aefb; --arm-5: #ffb74d; } }
.plots { columns: 21rem 2; column-gap: 2rem; }
figure { margin: 0 0 1.5rem; max-width: 32rem; break-inside: avoid; }
figcaption { font-size: .875rem; color: var(--soft); }
figure svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
 figure svg text { font-family: system-ui, sans-serif; }
"""


@dataclass(frozen=True)
class Row:
    """One row of a plot.

    Args:
        label: stands above it.
        colour: of its marks: 0 for the default scheduler, from 1 for the policies.
        marks: drawn as dots.
        at: drawn as a bar across the row; None for none.
        interval: drawn as a line; None for none.
        limit: what must not be passed, a dotted line where it is near the other values; None for none.
    """

    label: str
    colour: int
    marks: tuple[float, ...] = ()
    at: float | None = None
    interval: tuple[float, float] | None = None
    limit: float | None = None


def colour_of(number: int) -> int:
    """Return the colour of an arm, by its place among the arms: the default's comes first and never again."""
    return number if number == 0 else 1 + (number - 1) % 5


def strip_plot(plot: str, title: str, rows: Sequence[Row], unit: str | None, *, ratio: bool = False) -> str:
    """Return rows of dots on one axis, logarithmic where they are far apart.

    Args:
        plot: id of the plot in the page.
        title: what it shows; the caption.
        unit: of the axis, see `values.SECONDS`.
        ratio: whether the values are ratios: drawn by their logarithms, with a line at 1.
    """
    values = [value for row in rows for value in (*row.marks, row.at, *(row.interval or ())) if value is not None]

    def draw(axes: Axes) -> None:
        if ratio and values:
            axes.axvline(1, color=_LINE, linewidth=1.5)
            _ratio_scale(axes, min(*values, 1), max(*values, 1))
        elif values and logarithmic(values):
            _log_scale(axes)
        for number, row in enumerate(rows):
            near = row.limit is not None and values and min(values) / 1.1 <= row.limit <= max(values) * 1.1
            _draw(axes, plot, len(rows) - number, row if near else replace(row, limit=None))
        _rows(axes, len(rows))
        _ticks(axes, None if ratio else unit)

    shown = ", ".join(f"{row.label}: {len(row.marks)} runs" if row.marks else row.label for row in rows)
    return _figure(plot, title, f"{title}. {shown}.", _svg(plot, len(rows) * _ROW_IN + _FRAME_IN, draw))


def bars(plot: str, title: str, rows: Mapping[str, tuple[int, float, float]], parts: tuple[str, str]) -> str:
    """Return a bar of two parts for each row: the first filled, the second only framed.

    Args:
        rows: by label: colour, and the length of either part in seconds.
        parts: what they are.
    """

    def draw(axes: Axes) -> None:
        for number, (label, (colour, full, empty)) in enumerate(rows.items()):
            y = len(rows) - number
            shade = _arm_colour(colour)
            axes.barh(y, full, height=0.36, color=shade, gid=f"{plot}-row-{number}")
            axes.barh(y, empty, left=full, height=0.36, color="none", edgecolor=shade, linewidth=1)
            _label(axes, y, label)
        _rows(axes, len(rows))
        _ticks(axes, SECONDS)

    description = "; ".join(
        f"{label}: {full:.3g} s {parts[0]}, {empty:.3g} s {parts[1]}" for label, (_, full, empty) in rows.items()
    )
    return _figure(plot, title, f"{title}. {description}.", _svg(plot, len(rows) * _ROW_IN + _FRAME_IN, draw))


def timeline(plot: str, title: str, points: Sequence[tuple[float, int]], cpus: int, wall_s: float) -> str:
    """Return the runnable tasks over time, with a line at the number of CPUs.

    Args:
        points: (seconds since the start, runnable tasks); of very many, the most of each short span is drawn.
        wall_s: end of the axis, in seconds.
    """
    if len(points) > _MOST_STEPS:
        most = spans(points, wall_s, _MOST_STEPS)
        points = [(wall_s * place / _MOST_STEPS, tasks) for place, tasks in enumerate(most)]
    times, tasks = [*(time for time, _tasks in points), wall_s], [*(tasks for _time, tasks in points), points[-1][1]]

    def draw(axes: Axes) -> None:
        axes.fill_between(times, tasks, step="post", color=_arm_colour(1), alpha=0.35, linewidth=0)
        axes.step(times, tasks, where="post", color=_arm_colour(1), gid=f"{plot}-row-0")
        axes.axhline(cpus, color=_INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"{cpus} CPU{'s' * (cpus != 1)}", (wall_s, cpus), (-2, 3), textcoords="offset points", ha="right",
            color=_INK, fontsize=_FONT_PT,
        )  # fmt: skip
        axes.set_ylim(0, max(*tasks, cpus) * 1.15)
        axes.set_xlim(0, wall_s)
        axes.locator_params(axis="y", integer=True, nbins=5)
        axes.spines["left"].set_visible(True)
        _ticks(axes, SECONDS)

    return _figure(plot, title, f"{title}: at most {max(tasks)} on {cpus} CPUs.", _svg(plot, 2.4, draw))


def _frame(axes: Axes) -> None:
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.spines["left"].set_color(_LINE)
    axes.tick_params(colors=_LINE, labelcolor=_SOFT, labelsize=_FONT_PT)
    axes.locator_params(axis="x", nbins=4)


def _rows(axes: Axes, count: int) -> None:
    axes.set_ylim(0.6, count + 0.65)
    axes.set_yticks([])


def _ratio_scale(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with 1 on it, and round ticks: three or more of them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    scales = [_WIDE_TICKS] if high / low > _WIDE else [[step * place for place in range(1, 400)] for step in _STEPS]
    inside = [[tick for tick in ticks if low / 1.01 <= tick <= high * 1.01] for ticks in scales]
    axes.xaxis.set_major_locator(FixedLocator(next((ticks for ticks in inside if len(ticks) >= 3), inside[-1])))
    axes.xaxis.set_minor_locator(NullLocator())


def _log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=_MOST_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())


def _ticks(axes: Axes, unit: str | None) -> None:
    """Label the axis below in one unit, which its larger end decides."""
    high = axes.get_xlim()[1]
    factor, name = next(((factor, name) for factor, name in _SCALES if high * factor >= 1), _SCALES[-1])
    if unit != SECONDS:
        factor, name = (100.0, " %") if unit == FRACTION else (1.0, "")
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value * factor:.6g}{name}")


_SCALES = ((1.0, " s"), (1e3, " ms"), (1e6, " us"))


def _draw(axes: Axes, plot: str, y: int, row: Row) -> None:
    shade = _arm_colour(row.colour)
    _label(axes, y, row.label)
    if row.interval:
        axes.plot(row.interval, (y, y), color=shade, linewidth=2, gid=f"{plot}-interval-{y}")
    if row.limit is not None:
        axes.plot((row.limit, row.limit), (y - 0.22, y + 0.22), color=_INK, linewidth=1.5, linestyle=":")
    if row.marks:
        heights = [y + 0.06 * ((number * 2) % 5 - 2) for number in range(len(row.marks))]
        axes.plot(
            row.marks, heights, "o", color=shade, alpha=0.7, markersize=5, markeredgewidth=0, gid=f"{plot}-marks-{y}"
        )
    if row.at is not None:
        axes.plot((row.at, row.at), (y - 0.24, y + 0.24), color=_INK, linewidth=2.5, gid=f"{plot}-at-{y}")


def _label(axes: Axes, y: float, label: str) -> None:
    words = printable(label)
    shown = words if len(words) <= _LONGEST_LABEL else f"{words[: _LONGEST_LABEL - 3]}..."
    axes.annotate(
        shown, (0, y + 0.29), xycoords=("axes fraction", "data"), va="bottom", color=_INK, fontsize=_FONT_PT,
        parse_math=False, in_layout=False,
    )  # fmt: skip


def _arm_colour(colour: int) -> str:
    return f"#0404{colour:02x}"


def _svg(plot: str, height_in: float, draw: Callable[[Axes], None]) -> str:
    """Return a drawing as an element: no head, ids that no other plot has, colours of the style.

    It is drawn by matplotlib's own defaults, whatever the user's matplotlibrc says, and in silence: a browser has the
    letters that matplotlib's fonts lack.
    """
    import matplotlib  # 0.6 s, and only a page needs it
    from matplotlib.figure import Figure

    content = io.StringIO()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": plot})
        drawing = Figure((_WIDTH_IN, height_in), layout="constrained")
        axes = drawing.add_subplot()
        _frame(axes)
        draw(axes)
        drawing.savefig(content, format="svg", transparent=True, metadata=_NO_METADATA)
    return _element(content.getvalue(), plot)


def _element(svg: str, plot: str) -> str:
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # its rule would hold for the whole page
    element = re.sub(rf'\bid="(?!{plot}-)', f'id="{plot}-', element)
    element = re.sub(rf'(href="#|url\(#)(?!{plot}-)', rf"\g<1>{plot}-", element)
    element = re.sub(r"font-family:[^;\"]*;?", "", element)
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', element, count=1)
    return re.sub("|".join(_COLOURS), lambda match: _COLOURS[match[0]], element)


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _figure(plot: str, title: str, description: str, svg: str) -> str:
    return (
        f'<figure id="{plot}" role="img" aria-label="{text(description)}">'
        f"<figcaption>{text(title)}</figcaption>{svg}</figure>"
    )
