"""Render the page with Jinja2. All values are escaped; the page has no script and loads nothing.

The sizes of all lists are bounded, so that the page of any run stays below 2 MB.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wikillm import __version__
from wikillm.core.files import write_atomic
from wikillm.core.log import warn
from wikillm.core.printable import printable
from wikillm.report.comparison import comparison
from wikillm.report.figures import plots_of
from wikillm.report.plot import COLOUR_RULES, COLOURS, STYLE, Curve, Plot, svg
from wikillm.report.run_files import RunFiles, read_run
from wikillm.report.sections import sections_of

FILE_NAME = "report.html"


def write_report(runs: Sequence[Path], out: Path | None = None, price: float | None = None) -> Path:
    """Write the page about one run, or about several runs overlaid. Returns the path of the page.

    Args:
        out: path of the page. Default: RUN/report.html for one run, report.html for several.
        price: price per device-hour; None leaves the cost out.

    Raises:
        ConfigError: one of `runs` is not a run directory.
        OSError: the page cannot be written.
    """
    found = [read_run(path) for path in runs]
    target = out or (runs[0] / FILE_NAME if len(runs) == 1 else Path(FILE_NAME))
    write_atomic(target, render(found, price))
    return target


def refresh_page(run: Path) -> None:
    """Write RUN/report.html; any failure is only a warning."""
    try:
        write_report([run])
    except Exception as error:
        warn(f"{run / FILE_NAME} was not written ({type(error).__name__}: {error})")


def render(runs: Sequence[RunFiles], price: float | None = None) -> str:
    """The page as text, without control characters and direction overrides."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    name = "run" if len(runs) == 1 else "compare"
    values = sections_of(runs[0], price) if len(runs) == 1 else comparison(runs, price)
    page = environment.get_template(f"{name}.html.j2").render(
        **values,
        plots=[_figure(plot) for plot in plots_of(runs)],
        style=Markup(STYLE + COLOUR_RULES),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        version=__version__,
        command=shlex.join(str(run.path) for run in runs),
    )
    return printable(page)


def _figure(plot: Plot) -> Mapping[str, Any]:
    keys = [{"swatch": _swatch(curve), "label": curve.label} for curve in plot.drawn()]
    return {"title": plot.title, "svg": svg(plot), "legend": keys if len(keys) > 1 else []}


def _swatch(curve: Curve) -> Markup:
    colour = f"c{curve.colour % COLOURS}"
    if curve.dots:
        inner = f'<circle class="{colour}" cx="50%" cy="50%" r="3"/>'
    else:
        kind = f"{colour} faint" if curve.faint else colour
        inner = f'<polyline class="{kind}"{curve.dashes} points="0,6 26,6"/>'
    return Markup(f'<svg class="plot key" aria-hidden="true">{inner}</svg>')
