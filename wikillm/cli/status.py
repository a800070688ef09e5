"""`wikillm status RUN`: show what each node and rank of a run is doing, or how the run ended."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from wikillm.core.files import read_object
from wikillm.core.units import format_count, format_seconds
from wikillm.observe import names
from wikillm.observe.format import LogTable
from wikillm.observe.sinks import read_new_records
from wikillm.report.run_files import read_settings
from wikillm.supervise.status import RunStatus, read_status

LOOK_SECONDS = 1.0
HEADER_EVERY = 25  # lines
_ALIVE = ("starting", "running", "stopping")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "the run directory, seen from any node that shares it"
    add("run", type=Path, metavar="RUN", help=help)
    add("--json", action="store_true", help="print one JSON object")
    help = "show the run as it trains, until it ends (Ctrl-C leaves it running)"
    add("--follow", action="store_true", help=help)


def run(args: argparse.Namespace) -> int:
    status = read_status(args.run)
    if args.follow:
        _follow(args.run)
        status = read_status(args.run)
    if args.json:
        print(json.dumps(status.to_json(), indent=2, ensure_ascii=False))
        return 0
    for line in _lines(status):
        print(line)
    return 0


def _lines(status: RunStatus) -> list[str]:
    lines = [f"run        {status.run}", f"state      {status.state}"]
    if status.metrics:
        metrics = status.metrics
        loss = "not finite" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        speed = format_count(round(metrics["tokens_per_second"] or 0))
        age = format_seconds(status.to_json()["logged_seconds_ago"])
        done = f"step {metrics['step']:,}, {format_count(metrics['tokens'])} tokens"
        lines.append(f"progress   {done}, loss {loss}, {speed} tokens/s, {age} ago")
    if status.exit is not None:
        reason = str(status.exit.get("reason", "")).replace("\n", "\n           ")
        end = f"{status.exit.get('code')} at step {status.exit.get('step')}"
        lines.append(f"exit       {end}: {reason}")
    if not status.ranks:
        return [*lines, "ranks      no rank has reported yet"]
    head = f"{'rank':>5} {'host':<20} {'pid':>8} {'phase':<11} {'step':>9}"
    lines += ["", f"{head} {'standing':>9} {'seen':>9}  state"]
    for record, alive in zip(status.ranks, status.running, strict=True):
        end = "gone" if record.exit is None else f"exit {record.exit['code']}"
        process = f"{record.process.host:<20.20} {record.process.pid:>8}"
        standing = format_seconds(record.standing)
        seen = format_seconds(record.age(status.now))
        lines.append(
            f"{record.rank:>5} {process} {record.phase:<11} {record.step:>9,} "
            f"{standing:>9} {seen:>9}  {'running' if alive else end}"
        )
    return lines


def _follow(run: Path) -> None:
    """Show a run as it trains, from its files, until no rank is running.

    A terminal gets the live view that the run itself shows; other outputs get the run's log lines.
    If the run has not started yet, wait for it.
    """
    from wikillm.observe.live import LiveView, wants_live_view

    # The plan is written when the run starts.
    while (horizon := _horizon(run)) is None:
        if read_status(run).state not in _ALIVE:
            return
        time.sleep(LOOK_SECONDS)
    table = LogTable(*horizon)
    view: LiveView | None = None
    if wants_live_view():
        save = read_settings(run / "config.resolved.yaml").get("train.save_steps")
        every = int(save.value) if save and save.value.isdecimal() else None
        view = LiveView(*horizon, every)
        view.start()
    offsets = {"metrics.jsonl": 0, "events.jsonl": 0}
    printed_rows = 0
    try:
        while True:
            status = read_status(run)
            for name in offsets:
                records, offsets[name] = read_new_records(run / name, offsets[name])
                for record in records:
                    if view is not None:
                        _show_record(view, record)
                    elif names.LOSS in record:
                        if printed_rows % HEADER_EVERY == 0:
                            print(table.header())
                        print(table.line(record), flush=True)
                        printed_rows += 1
            if status.state not in _ALIVE:
                return
            if view is not None:
                phases = {record.phase for record in status.ranks} - {"step", "data"}
                view.status("" if not phases else f"{status.state}: {', '.join(sorted(phases))}")
            time.sleep(LOOK_SECONDS)
    finally:
        if view is not None:
            view.stop()


def _show_record(view: Any, record: dict[str, Any]) -> None:
    if record.get(names.KIND) == names.EVAL:
        if isinstance(loss := record.get(names.EVAL_LOSS), float):
            view.show_evaluation(loss)
    elif names.LOSS in record:
        numbers = (int, float, type(None))
        view.record({name: v for name, v in record.items() if type(v) in numbers})


def _horizon(run: Path) -> tuple[int, int] | None:
    """Steps and tokens of the run's plan; None until it is written."""
    plan = read_object(run / "plan.json")
    try:
        return int(plan["max_steps"]), int(plan["total_tokens"])
    except (ValueError, KeyError, TypeError):
        return None
