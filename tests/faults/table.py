"""The table of docs/reliability.md from the JSON of a campaign.

python -m tests.faults.table runs/faults.json --into docs/reliability.md
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

TITLES = {
    "kill": "SIGKILL at a random moment, one rank or all",
    "calls": "SIGKILL before and inside each call of a save and its rotation",
    "power": "power loss during a save: data that was not fsynced may be lost",
    "resuming": "five SIGKILLs in a row, each during the resume",
    "corrupt": "one file of the newest checkpoint cut, flipped, zeroed, deleted",
    "corrupt-all": "every checkpoint damaged",
    "disk": "the disk is full at a random byte, then has space again",
    "store": "a file of the token store damaged",
    "signal": "SIGTERM, SIGINT or SIGUSR1 at a random moment, to one rank or all",
    "twice": "the same signal twice in a step that does not end",
    "nan": "NaN in loss, gradient, weight or optimizer state",
    "pause": "one rank suspended for 0.5 to 4 s",
    "stall": "one rank suspended and never resumed",
    "ranks": "2, 1, 2 and 4 ranks in turn",
    "stages": "ZeRO 1, 2, 3, none in turn",
    "loaders": "another number of loader workers",
    "drift": "a setting that the checkpoint contradicts",
    "two-runs": "a second start in the same directory",
}
LEVELS = ("none", "L0", "L0 L2", "L0 L1", "refused", "")
BEGIN = "<!-- table -->"
END = "<!-- end of table -->"
HEAD = (
    "| fault | trials | as promised | samples lost / repeated | unusable checkpoints | equality "
    "| recovery, s: median (max) | stock: trials, failed resumes, wrong runs | command |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def table(content: dict[str, Any], *, times: bool = True) -> str:
    """Markdown: one row per fault, WikiLLM's numbers and stock's beside them."""
    ours: dict[str, list[dict[str, Any]]] = defaultdict(list)
    stock: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trial in content["trials"]:
        side = stock if trial["setup"].startswith("hf/") else ours
        side[trial["fault"]].append(trial)
    names = [name for name in TITLES if name in ours or name in stock]
    if not times:
        for trial in content["trials"]:
            trial["recover_seconds"] = []
    return "\n".join([HEAD, *(_row(name, ours[name], stock[name]) for name in names)])


def _row(name: str, ours: list[dict[str, Any]], stock: list[dict[str, Any]]) -> str:
    held = sum(not trial["problems"] for trial in ours)
    lost = sum(trial["lost"] for trial in ours)
    repeated = sum(trial["repeated"] for trial in ours)
    unusable = sum(trial["unusable"] for trial in ours)
    level = min((trial["level"] for trial in ours), key=LEVELS.index, default="")
    failed = sum(trial["unusable"] for trial in stock)
    wrong = sum(trial["is_wrong"] for trial in stock)
    beside = f"{len(stock)}, {failed}, {wrong}" if stock else ""
    more = " ARGS=--stock" if stock else ""
    command = f"`make faults FAULTS={name}:{max(len(ours), len(stock))}{more}`"
    cells = [TITLES[name], len(ours), held, f"{lost} / {repeated}", unusable, level]
    return "| " + " | ".join(map(str, [*cells, _seconds(ours), beside, command])) + " |"


def _seconds(trials: list[dict[str, Any]]) -> str:
    seconds = [each for trial in trials for each in trial["recover_seconds"]]
    return f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaigns", type=Path, nargs="+", help="JSON files; together one table")
    parser.add_argument("--no-times", action="store_true", help="the machine was busy")
    parser.add_argument("--into", type=Path, help="replace the table of this page")
    options = parser.parse_args()
    found = [json.loads(path.read_text()) for path in options.campaigns]
    text = table(
        {"trials": [trial for each in found for trial in each["trials"]]},
        times=not options.no_times,
    )
    if options.into is None:
        print(text)
        return
    page = options.into.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    options.into.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
