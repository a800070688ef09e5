"""Draw curves as SVG without a library, for the page and as files for documentation and model card.

Lengths are percentages and only lines are stretched, so that a plot in a page fills its column and
its letters have the size of the text. Colours are CSS variables of the page. A file contains its
own style, which follows the reader's light or dark setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from wikillm.core.units import format_count
from wikillm.report.curves import MAX_POINTS, Point, thin

COLOURS = 8
_MARGIN = 56  # pixels left of the axis, for the longest tick
STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #767676; --rule: #8883;
  --c0: #2f6db3; --c1: #c2502e; --c2: #2e7d4f; --c3: #7d4fa8; --c4: #8a6d00; --c5: #0e7c86;
  --c6: #b03a78; --c7: #5b6470; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --faint: #9b9b9b;
  --c0: #7db4f0; --c1: #f0906e; --c2: #76c893; --c3: #bb97e6; --c4: #d9bd55; --c5: #5cc6d0;
  --c6: #ec8fc0; --c7: #aab3bf; } }
svg.plot { display: block; width: 100%; overflow: visible; }
svg.plot.key { display: inline-block; }
.plot text { font: 12px system-ui, sans-serif; fill: var(--faint); }
.plot text.label { fill: var(--ink); }
.plot line { stroke: var(--rule); }
.plot line.mark { stroke: var(--faint); stroke-dasharray: 3 3; }
.plot polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
.plot polyline.faint { stroke-width: 1; opacity: .45; }
.plot circle.odd.odd { fill: none; stroke-width: 1.5; }
"""
STYLE += f"svg.plot.page {{ box-sizing: border-box; padding-left: {_MARGIN}px; }}\n"
COLOUR_RULES = "".join(
    f".plot .c{i} {{ stroke: var(--c{i}); }} .plot circle.c{i} {{ fill: var(--c{i}); }}\n"
    for i in range(COLOURS)
)
_WIDTH = 98.0  # per cent of the width right of the margin
_MAX_TICK = 6  # characters
_TOP = 10  # pixels
_HEIGHT = 180
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Dash patterns of the lines, so that curves can be told apart without their colours."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve.

    Args:
        colour: number of the colour. Numbers beyond the last colour reuse the colours with other
            dashes.
        faint: draw a thin, pale line.
        dots: draw a pale line with a dot for each value.
    """

    label: str
    points: Sequence[Point]
    colour: int = 0
    faint: bool = False
    dots: bool = False

    @property
    def dashes(self) -> str:
        """The SVG attribute for the line's dashes, chosen by the number of the colour."""
        found = _DASHES[(self.colour + self.colour // COLOURS) % len(_DASHES)]
        return f' stroke-dasharray="{found}"' if found and not self.faint else ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over tokens.

    Attributes:
        unit: unit of the values, for the axis.
        marks: (tokens, title) of vertical lines.
        levels: (value, label) of horizontal lines.
        circles: (tokens, value, title) of points that are circled.
    """

    title: str
    curves: Sequence[Curve]
    unit: str = ""
    marks: Sequence[tuple[float, str]] = ()
    levels: Sequence[tuple[float, str]] = ()
    circles: Sequence[tuple[float, float, str]] = ()

    def drawn(self) -> list[Curve]:
        """The curves that have a value."""
        return [c for c in self.curves if any(value is not None for _, value in c.points)]


def svg(plot: Plot) -> Markup:
    """The plot as an element of a page, as wide as its column and 230 pixels high."""
    label = f"{plot.title} over tokens: {describe(plot)}"
    head = f'<svg class="plot page" role="img" height="230" aria-label="{escape(label)}">'
    return Markup(head + _content(plot) + "</svg>")


def svg_file(plot: Plot) -> str:
    """The plot as a file, with its style and a legend."""
    view = f"{-_MARGIN} 0 720 250"
    box = f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="{view}"'
    style = f"<style>{STYLE}{COLOUR_RULES}</style>"
    curves = plot.drawn()
    legend = []
    for i, curve in enumerate(curves):
        x = _WIDTH * i / len(curves)
        colour = curve.colour % COLOURS
        legend.append(f'<circle class="c{colour}" cx="{x + 1:.1f}%" cy="240" r="4"/>')
        legend.append(
            f'<text class="label" x="{x + 2.2:.1f}%" y="244">{escape(curve.label)}</text>'
        )
    return f'{box} role="img">{style}{_content(plot)}{"".join(legend)}</svg>\n'


def describe(plot: Plot) -> str:
    """The first and last value of each curve as text, for screen readers."""
    parts = []
    for curve in plot.drawn():
        known = [value for _, value in curve.points if value is not None]
        parts.append(f"{curve.label} from {known[0]:.4g} to {known[-1]:.4g}")
    return "; ".join(parts)


def _content(plot: Plot) -> str:
    curves = plot.drawn()
    points = [point for curve in curves for point in curve.points if point[1] is not None]
    values = [value for _, value in points if value is not None]
    values += [value for value, _ in plot.levels]
    values += [value for _, value, _ in plot.circles]
    ys = ticks(min(values), max(values))
    last = max([x for x, _ in points] + [1.0])
    xs = [x for x in ticks(0.0, last) if x <= last]
    frame = _Frame(last, ys[0], ys[-1])
    parts = [*_axes(frame, xs, ys, plot.unit)]
    parts += [
        f'<line class="mark" x1="{frame.x(x)}" x2="{frame.x(x)}" y1="{_TOP}" '
        f'y2="{_TOP + _HEIGHT}"><title>{escape(title)}</title></line>'
        for x, title in plot.marks
    ]
    for value, label in plot.levels:
        y = frame.y(value)
        parts.append(f'<line class="mark" x1="0" x2="{_WIDTH}%" y1="{y}" y2="{y}"/>')
        place = f'x="{_WIDTH - 1}%" y="{y - 5:.1f}" text-anchor="end"'
        parts.append(f"<text {place}>{escape(label)}</text>")
    # Only the lines are in the stretched inner SVG, so that dots stay round.
    max_points = min(MAX_POINTS, max(50, 4 * MAX_POINTS // len(curves)))
    lines = [_line(frame, curve, max_points) for curve in curves]
    area = f'x="0" y="{_TOP}" width="{_WIDTH}%" height="{_HEIGHT}"'
    parts.append(f'<svg {area} viewBox="0 0 1000 1000" preserveAspectRatio="none">')
    parts += [*lines, "</svg>"]
    parts += [dot for curve in curves if curve.dots for dot in _dots(frame, curve)]
    parts += [
        f'<circle class="odd c1" cx="{frame.x(x)}" cy="{frame.y(value)}" r="5">'
        f"<title>{escape(title)}</title></circle>"
        for x, value, title in plot.circles
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Converts tokens to x as a percentage, and values to y in pixels."""

    last: float  # tokens at the right edge
    low: float
    high: float

    def share(self, value: float) -> float:
        return (self.high - value) / (self.high - self.low)

    def x(self, tokens: float) -> str:
        return f"{_WIDTH * tokens / self.last:.2f}%"

    def y(self, value: float) -> float:
        return round(_TOP + _HEIGHT * self.share(value), 1)


def _axes(frame: _Frame, xs: list[float], ys: list[float], unit: str) -> Iterable[str]:
    for value in ys:
        y = frame.y(value)
        yield f'<line x1="0" x2="{_WIDTH}%" y1="{y}" y2="{y}"/>'
        shown = _tick(value, ys)
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
    bottom = _TOP + _HEIGHT
    for i, tokens in enumerate(xs):
        is_at_edge = tokens > 0.95 * frame.last
        anchor = "start" if i == 0 else "end" if is_at_edge else "middle"
        text = f'<text x="{frame.x(tokens)}" y="{bottom + 18}" text-anchor="{anchor}">'
        yield f"{text}{format_count(tokens)}</text>"
    named = f"{unit} over tokens" if unit else "over tokens"
    yield f'<text x="{_WIDTH}%" y="{bottom + 36}" text-anchor="end">{escape(named)}</text>'


def _line(frame: _Frame, curve: Curve, max_points: int) -> str:
    """A polyline for each part of the curve between gaps."""
    parts: list[list[str]] = [[]]
    for x, value in thin(curve.points, max_points):
        if value is None:
            parts.append([])
        else:
            parts[-1].append(f"{1000 * x / frame.last:.4g},{1000 * frame.share(value):.4g}")
    colour = curve.colour % COLOURS
    kind = f"c{colour} faint" if curve.faint or curve.dots else f"c{colour}"
    return "".join(
        f'<polyline class="{kind}"{curve.dashes} points="{" ".join(part)}"/>'
        for part in parts
        if part
    )


def _dots(frame: _Frame, curve: Curve) -> Iterable[str]:
    for x, value in thin(curve.points, 200):
        if value is not None:
            place = f'cx="{frame.x(x)}" cy="{frame.y(value)}" r="3"'
            title = escape(f"{curve.label}: {value:.4g} at {format_count(x)} tokens")
            colour = f"c{curve.colour % COLOURS}"
            yield f'<circle class="{colour}" {place}><title>{title}</title></circle>'


def ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers in equal steps that cover `low` to `high`."""
    if not high - low > max(1e-12 * max(abs(low), abs(high)), 1e-300):
        margin = abs(low) / 10 or 1.0
        low -= margin
        high += margin
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _tick(value: float, every: Sequence[float]) -> str:
    step = every[1] - every[0]
    largest = max(abs(every[0]), abs(every[-1]))
    if largest >= 10_000:
        return format_count(value) if value else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10**digits, 6) % 1 != 0
    short = [f"{each:.1e}" for each in every]
    if len(f"{largest:.{digits}f}") > _MAX_TICK and len(set(short)) == len(short):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}" if value else "0"
    return f"{value:.{digits}f}"
