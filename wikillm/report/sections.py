"""The sections of one run's page, as plain text and tables for the template."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from wikillm.core.units import format_count, format_seconds, format_size
from wikillm.evals.results import TASK_HEAD, TEXT_HEAD, read_results, task_rows, text_rows
from wikillm.observe import names
from wikillm.report.curves import spikes
from wikillm.report.data_section import data_section
from wikillm.report.ledger_section import ledger_section
from wikillm.report.run_files import RunFiles, as_dict, as_dicts, number, plain
from wikillm.report.starts import Effort, RunStart, as_time, effort_of, starts_of

MAX_ROWS = 60
_SAMPLE_CHARACTERS = 120_000  # limit for all samples together
_ONE_SAMPLE = 2000  # limit for one sample
_PROMPT_CHARACTERS = 200
_SAMPLES_PER_PROMPT = 24
_SAMPLES_SHOWN = 2
_VALUE_CHARACTERS = 1000
_PARTS = (
    ("curves", "Curves"),
    ("model", "Model and settings"),
    ("data", "Data"),
    ("evaluation", "Evaluation"),
    ("samples", "Samples"),
    ("ledger", "Ledger"),
    ("starts", "Starts and faults"),
    ("plan", "Planned and measured"),
)


def sections_of(run: RunFiles, price: float | None) -> dict[str, Any]:
    """All values of the template run.html.j2."""
    starts = starts_of(run)
    effort = effort_of(run, starts, price)
    loss_spikes = spikes(run)
    settings = list(run.settings.values())
    return {
        "title": run.name,
        "path": str(run.path.absolute()),
        "parts": _PARTS,
        **_state(run),
        "facts": list(_overview(run, effort)),
        "spikes": [
            (
                f"{spike.step:,}",
                f"{spike.loss:.4f}",
                _shown(spike.median, ".4f"),
                spike.action,
                cut("; ".join(spike.documents)),
            )
            for spike in loss_spikes[:MAX_ROWS]
        ],
        "more_spikes": max(0, len(loss_spikes) - MAX_ROWS),
        "model": _model(run),
        "chosen": [(s.key, cut(s.value), cut(s.origin)) for s in settings if s.origin],
        "defaults": [(s.key, cut(s.value)) for s in settings if not s.origin],
        "environment": _environment(run.environment),
        **data_section(run),
        **_evaluations(run),
        "samples": _samples(run),
        **ledger_section(run.path),
        **_starts(run, starts),
        "diverged_step": run.diverged.get("step"),
        "diverged": list(_diverged(run))[:MAX_ROWS],
        "planned": list(_planned(run)),
        "outcome_basis": run.outcome.get("basis"),
    }


def cut(text: str) -> str:
    """`text`, cut to a limited length."""
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]} ..."


def spread(rows: Sequence[Any], max_rows: int = MAX_ROWS) -> list[Any]:
    """At most `max_rows` of the rows, evenly spaced, including the first and the last."""
    if len(rows) <= max_rows:
        return list(rows)
    return [rows[i * (len(rows) - 1) // (max_rows - 1)] for i in range(max_rows)]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _state(run: RunFiles) -> dict[str, Any]:
    step = run.last.get(names.STEP, 0)
    horizon = run.plan.get("max_steps")
    done = f"step {step:,}" + (f" of {horizon:,}" if isinstance(horizon, int) else "")
    if run.exit:
        meaning = str(run.exit.get("meaning", "ended"))
        reason = str(run.exit.get("reason", "")).splitlines()[:1]
        text = f"{meaning}, {done}" + (f": {reason[0]}" if reason else "")
        return {"state": text, "failed": run.exit.get("code") not in (0, 75)}
    at = number(run.last, names.TIME)
    seen = f", last record {as_time(at)}" if at is not None else ""
    return {"state": f"no end recorded: running or killed; {done}{seen}", "failed": False}


def _overview(run: RunFiles, effort: Effort) -> Any:
    """(label, value, note) of the main results."""
    last = run.last
    parameters = number(run.plan, "parameters")
    if parameters is not None:
        yield "parameters", format_count(parameters), f"{int(parameters):,}"
    epoch = number(last, names.EPOCH)
    note = "" if epoch is None else f"{epoch:.2f} epochs"
    yield "tokens trained on", format_count(number(last, names.TOKENS) or 0), note
    yield "training loss", _shown(number(last, names.LOSS), ".4f"), "nats/token, last record"
    if run.evaluations:
        evaluation = run.evaluations[-1]
        at = f"nats/token at step {evaluation[names.STEP]:,}"
        yield "validation loss", _shown(number(evaluation, names.EVAL_LOSS), ".4f"), at
        yield "bits per byte", _shown(number(evaluation, names.BITS_PER_BYTE), ".4f"), "validation"
    speed = number(as_dict(run.outcome.get("measured")), "tokens_per_second")
    if speed is None:
        speed = number(last, names.TOKENS_PER_SECOND)
    if speed is not None:
        yield "tokens per second", format_count(speed), "all ranks"
    trained = "" if effort.train_hours is None else f"{hours(effort.train_hours)} in steps"
    yield "time", hours(effort.hours), trained
    yield "device hours", f"{effort.device_hours:.3g}", "ranks x time"
    if effort.cost is not None:
        yield "cost", f"{effort.cost:,.2f}", "device hours x --price"
    if effort.kwh is not None:
        yield "energy", f"{effort.kwh:.3g} kWh", "rank 0's GPU x ranks"


def hours(value: float) -> str:
    """0.5 -> 30m00s."""
    return format_seconds(3600 * value)


def _model(run: RunFiles) -> list[tuple[str, str]]:
    plan = run.plan
    setup = as_dict(run.outcome.get("setup"))
    rows = []
    for label, key in (("model", "model.preset"), ("architecture", "model.architecture")):
        if key in run.settings:
            rows.append((label, plain(run.settings[key].value)))
    if setup:
        rows.append(("device", str(setup.get("device"))))
        rows.append(("engine", f"{setup.get('engine')}, {setup.get('precision')}"))
    if plan:
        batch = (
            f"{plan.get('global_batch_tokens')} tokens = {plan.get('micro_batch')} sequences x "
            f"{plan.get('accumulation')} accumulation x {plan.get('world_size')} ranks x "
            f"{plan.get('sequence_length')} tokens"
        )
        rows.append(("batch", batch))
        rows.append(("vocabulary", str(plan.get("vocab_size"))))
        horizon = f"{plan.get('max_steps')} steps, {plan.get('total_tokens')} tokens, "
        rows.append(("horizon", f"{horizon}warm-up {plan.get('warmup_steps')} steps"))
        notes = plan.get("notes")
        rows += [("note", str(note)) for note in notes] if isinstance(notes, list) else []
    return rows


def _environment(found: dict[str, Any]) -> list[tuple[str, str]]:
    words = found.get("command")
    rows = [("command", cut(shlex.join(map(str, words))))] if isinstance(words, list) else []
    for name in ("python", "platform", "host", "cpus", "git"):
        if found.get(name) is not None:
            rows.append((name, str(found[name])))
    packages = as_dict(found.get("packages"))
    return rows + [(name, str(version)) for name, version in packages.items() if version]


def _evaluations(run: RunFiles) -> dict[str, Any]:
    found = run.evaluations
    prefix = names.of_source(names.EVAL_LOSS, "")
    sources = sorted({key for event in found for key in event if key.startswith(prefix)})[:16]
    rows = []
    for event in spread(found):
        loss = number(event, names.EVAL_LOSS)
        rows.append(
            (
                f"{event[names.STEP]:,}",
                format_count(run.tokens_at(event[names.STEP])),
                _shown(loss, ".4f"),
                _shown(None if loss is None or loss > 700 else math.exp(loss), ",.2f"),
                _shown(number(event, names.BITS_PER_BYTE), ".4f"),
                format_count(number(event, names.EVAL_TOKENS) or 0),
                *(_shown(number(event, key), ".4f") for key in sources),
            )
        )
    head = ["#step", "#tokens", "#loss", "#perplexity", "#bits/byte", "#held-out tokens"]
    head += [f"#loss of {key.removeprefix(prefix)}" for key in sources]
    records = read_results(run.path)
    return {
        "evaluation_head": head,
        "evaluations": rows,
        "task_head": TASK_HEAD,
        "task_scores": task_rows(records)[-MAX_ROWS:],
        "text_head": TEXT_HEAD,
        "text_scores": text_rows(records)[-MAX_ROWS:],
    }


def _samples(run: RunFiles) -> list[dict[str, Any]]:
    """The samples of each prompt, newest first. If there are many, evenly spaced ones are
    chosen."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for event in run.current:
        if event[names.KIND] != names.SAMPLES or names.STEP not in event:
            continue
        for text in as_dicts(event.get("samples")):
            sample = {"step": f"{event[names.STEP]:,}", "text": str(text.get("text", ""))}
            by_prompt.setdefault(str(text.get("prompt", "")), []).append(sample)
    chosen = {
        prompt: spread(samples, _SAMPLES_PER_PROMPT)[::-1]
        for prompt, samples in list(by_prompt.items())[:_SAMPLES_PER_PROMPT]
    }
    each = min(_ONE_SAMPLE, _SAMPLE_CHARACTERS // max(1, sum(map(len, chosen.values()))))
    out = []
    for prompt, samples in chosen.items():
        short = [{**sample, "text": sample["text"][:each]} for sample in samples]
        shown = {"shown": short[:_SAMPLES_SHOWN], "earlier": short[_SAMPLES_SHOWN:]}
        out.append({"prompt": prompt[:_PROMPT_CHARACTERS], **shown})
    return out


def _starts(run: RunFiles, starts: Sequence[RunStart]) -> dict[str, Any]:
    rows = []
    for start in starts[-MAX_ROWS:]:
        steps = "-"
        if start.first_step is not None:
            steps = f"{start.first_step:,} to {start.last_step:,}"
        again = f"{start.repeated:,} steps" if start.repeated else "-"
        ranks = "-" if start.ranks is None else str(start.ranks)
        took = format_seconds(start.seconds)
        began = "unknown" if start.began is None else as_time(start.began)
        rows.append((start.segment + 1, began, ranks, steps, took, again, cut(start.ended)))
    warnings = [
        (w.first, w.count, ", ".join(map(str, w.ranks[:8])), w.level, w.message)
        for w in run.warnings[:MAX_ROWS]
    ]
    more = max(0, len(run.warnings) - MAX_ROWS)
    return {"starts": rows, "warnings": warnings, "more_warnings": more}


def _diverged(run: RunFiles) -> Any:
    """(rank, micro-step, loss, source, byte, document) of each document in the batch whose loss was
    not finite."""
    for batch in as_dicts(run.diverged.get("micro_batches")):
        nonfinite = as_dict(batch.get(names.NONFINITE))
        loss = nonfinite.get(names.LOSS, batch.get(names.LOSS))
        micro_step = int(number(batch, "micro_step") or 0) + 1
        for document in as_dicts(batch.get("documents")):
            place = [str(document.get(key)) for key in ("source", "offset", "document")]
            yield str(batch.get("rank")), micro_step, str(loss), *place


def _planned(run: RunFiles) -> Any:
    """(quantity, planned, measured, difference)."""
    predicted = as_dict(run.outcome.get("predicted"))
    measured = as_dict(run.outcome.get("measured"))
    size = "memory_bytes"
    rate = "tokens_per_second"
    for label, plan_value, run_value, as_text in (
        ("steps", number(run.plan, "max_steps"), number(run.last, names.STEP), format_count),
        ("tokens", number(run.plan, "total_tokens"), number(run.last, names.TOKENS), format_count),
        ("peak memory", number(predicted, size), number(measured, size), format_size),
        ("tokens/s", number(predicted, rate), number(measured, rate), format_count),
    ):
        off = "-" if plan_value is None or not run_value else f"{plan_value / run_value - 1:+.1%}"
        shown = ["-" if value is None else as_text(value) for value in (plan_value, run_value)]
        yield label, *shown, off
