"""`wikillm status RUN --follow`: a run as it trains, from its files, until it ends.

On a terminal it is the live view that the run itself would show; elsewhere the run's log lines.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

LOOK_SECONDS = 1.0
HEADER_EVERY = 25


def follow(run: Path) -> None:
    """Return when no rank runs any more. A run that has not started yet is waited for."""
    from wikillm.observe import names
    from wikillm.observe.format import LogTable
    from wikillm.observe.live import LiveView, wants_live_view
    from wikillm.observe.sinks import read_new_records
    from wikillm.report.run_files import read_settings
    from wikillm.supervise.status import read_status

    view: LiveView | None = None
    table: LogTable | None = None
    offsets = {"metrics.jsonl": 0, "events.jsonl": 0}
    lines = 0
    try:
        while True:
            status = read_status(run)
            if table is None and (horizon := _horizon(run)) is not None:
                table = LogTable(*horizon)
                save = read_settings(run / "config.resolved.yaml").get("train.save_steps")
                every = int(save.value) if save and save.value.isdecimal() else None
                if wants_live_view():
                    view = LiveView(*horizon, every)
                    view.start()
            for name in offsets if table else ():
                records, offsets[name] = read_new_records(run / name, offsets[name])
                for record in records:
                    if view is not None:
                        _show(view, record)
                    elif table is not None and names.LOSS in record:
                        if lines % HEADER_EVERY == 0:
                            print(table.header())
                        print(table.line(record), flush=True)
                        lines += 1
            if status.state not in ("starting", "running", "stopping"):
                return
            if view is not None:
                phases = {record.phase for record in status.ranks} - {"step", "data"}
                view.status("" if not phases else f"{status.state}: {', '.join(sorted(phases))}")
            time.sleep(LOOK_SECONDS)
    finally:
        if view is not None:
            view.stop()


def _show(view: Any, record: dict[str, Any]) -> None:
    from wikillm.observe import names

    if record.get(names.KIND) == names.EVAL:
        if isinstance(loss := record.get(names.EVAL_LOSS), float):
            view.evaluated(loss)
    elif names.LOSS in record:
        numbers = (int, float, type(None))
        view.record({name: v for name, v in record.items() if type(v) in numbers})


def _horizon(run: Path) -> tuple[int, int] | None:
    """Steps and tokens of the run's plan; None until it is written."""
    from wikillm.core.files import read_object

    plan = read_object(run / "plan.json")
    try:
        return int(plan["max_steps"]), int(plan["total_tokens"])
    except (ValueError, KeyError, TypeError):
        return None
