"""Choose the curves to draw: for one run, with its resumes and spikes marked, or for several."""

from __future__ import annotations

from collections.abc import Sequence

from wikillm.observe import names
from wikillm.report.curves import evaluations, resumes, series, smooth, spikes
from wikillm.report.plot import Curve, Plot
from wikillm.report.run_files import RunFiles, labels

GIB = 2.0**30
_MEASURED = (
    ("Learning rate", names.LEARNING_RATE, "", 1.0, False),
    ("Norm of the gradient", names.GRAD_NORM, "", 1.0, True),
    ("Tokens per second", names.TOKENS_PER_SECOND, "all ranks", 1.0, True),
    ("Waiting for data", names.DATA_WAIT_FRACTION, "% of the time", 0.01, True),
    ("Peak memory", names.MEMORY_BYTES, "GiB on rank 0", GIB, False),
    ("MFU", names.MFU, "%", 0.01, True),
)
"""(title, name in metrics.jsonl, unit of the axis, value of one unit, whether to smooth it)."""


def plots_of(runs: Sequence[RunFiles]) -> list[Plot]:
    """The plots of a page. A plot without any value is left out."""
    is_one = len(runs) == 1
    label_of = labels(runs)
    first = _loss_plot(runs[0]) if is_one else _losses_plot(runs)
    plots = [first]
    if not is_one:
        plots.append(Plot("Validation loss", _evaluated(runs, names.EVAL_LOSS), "nats/token"))
    plots.append(Plot("Bits per byte", _evaluated(runs, names.BITS_PER_BYTE), "validation"))
    if is_one:
        plots.append(Plot("Validation loss by source", _losses_by_source(runs[0]), "nats/token"))
    for title, name, unit, scale, is_noisy in _MEASURED:
        curves: list[Curve] = []
        for i, run in enumerate(runs):
            found = series(run, name)
            points = [(x, None if value is None else value / scale) for x, value in found]
            label = label_of[i] if not is_one else "logged"
            if is_noisy and is_one:
                curves.append(Curve(label, points, faint=True))
                label = "smoothed"
            curves.append(Curve(label, smooth(points) if is_noisy else points, i))
        marks = resumes(runs[0]) if is_one else ()
        plots.append(Plot(title, curves, unit, marks))
    return [plot for plot in plots if plot.drawn()]


def loss_plot(run: RunFiles, levels: Sequence[tuple[float, str]] = ()) -> Plot:
    """The losses of one run without marks, as in the documentation and in the model card."""
    curves = [
        Curve("training", series(run, names.LOSS)),
        Curve("validation", evaluations(run, names.EVAL_LOSS), 1, dots=True),
    ]
    return Plot("Loss", curves, "nats/token", levels=levels)


def _loss_plot(run: RunFiles) -> Plot:
    circles = [
        (spike.tokens, spike.loss, f"spike at step {spike.step:,}: {spike.loss:.4f}")
        for spike in spikes(run)
        if spike.is_current
    ]
    return Plot("Loss", _losses(run), "nats/token", resumes(run), circles=circles[:100])


def _losses(run: RunFiles) -> list[Curve]:
    training = series(run, names.LOSS)
    curves = [Curve("training", training, faint=True), Curve("smoothed", smooth(training))]
    return [*curves, Curve("validation", evaluations(run, names.EVAL_LOSS), 1, dots=True)]


def _losses_plot(runs: Sequence[RunFiles]) -> Plot:
    named = zip(labels(runs), runs, strict=True)
    curves = [
        Curve(label, smooth(series(run, names.LOSS)), i) for i, (label, run) in enumerate(named)
    ]
    return Plot("Training loss, smoothed", curves, "nats/token")


def _evaluated(runs: Sequence[RunFiles], name: str) -> list[Curve]:
    named = zip(labels(runs), runs, strict=True)
    return [
        Curve(label, evaluations(run, name), i, dots=True) for i, (label, run) in enumerate(named)
    ]


def _losses_by_source(run: RunFiles) -> list[Curve]:
    prefix = names.of_source(names.EVAL_LOSS, "")
    found = sorted({key for event in run.current for key in event if key.startswith(prefix)})
    return [
        Curve(key.removeprefix(prefix), evaluations(run, key), i, dots=True)
        for i, key in enumerate(found[:16])
    ]
