"""Disturb many tiny runs, by seed, and count what is lost: `make faults N=200`.

    python -m tests.faults.campaign --trials 200 --seed 0 --faults kill,corrupt --stock

Writes every trial into a JSON file and prints the table of docs/reliability.md. The exit code is 1
when a WikiLLM trial found a problem; each is printed with the command that repeats it. With
`--continue` a campaign that was ended early goes on with the trials that its file does not have.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
for place in (REPO, REPO / "tests"):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from faults import changes, damage, interpose, kills, stops  # noqa: E402
from faults.lab import Lab, Setup  # noqa: E402
from faults.table import table  # noqa: E402
from faults.trials import Fault, Trial, run_trial  # noqa: E402
from wikillm.core.files import write_json  # noqa: E402

SETUPS = (
    Setup(world=1),
    Setup(world=2),
    Setup(world=1, recipe="zero1"),
    Setup(world=2, recipe="zero1"),
    Setup(world=2, recipe="zero2"),
    Setup(world=2, recipe="zero3"),
    Setup(world=2, optimizer="muon"),
    Setup(world=2, recipe="zero2", optimizer="muon"),
)
STOCK = (
    Setup("hf", 1),
    Setup("hf", 2),
    Setup("hf", 2, "zero1"),
    Setup("hf", 2, "zero2"),
    Setup("hf", 2, "zero3"),
)
FAULTS: dict[str, Fault] = {
    "kill": kills.kill,
    "calls": lambda bench: None,  # its trials depend on how many calls a save has
    "power": kills.power,
    "resuming": kills.kill_while_resuming,
    "corrupt": damage.corrupt,
    "corrupt-all": damage.corrupt_all,
    "disk": damage.full_disk,
    "store": damage.hurt_store,
    "signal": stops.signals,
    "twice": stops.signal_twice,
    "nan": stops.poison,
    "pause": stops.suspend,
    "stall": stops.suspend_for_ever,
    "ranks": changes.ranks,
    "stages": changes.stages,
    "loaders": changes.loaders,
    "drift": changes.drift,
    "two-runs": changes.two_runs,
}
ON_STOCK = ("kill", "calls", "power", "resuming", "corrupt", "disk", "nan", "ranks", "stages")
"""Faults of which a stock run can be asked the same question."""
SLOW = {"stall": 8, "twice": 8, "resuming": 4, "ranks": 3, "stages": 3}
"""Faults with fewer trials: the number is divided by this."""


Key = tuple[str, str, int]
"""Fault, setup and seed of a trial."""


def setups_for(fault: str, stock: bool, only: str) -> list[Setup]:
    found = [each for each in (STOCK if stock else SETUPS) if str(each).startswith(only)]
    if fault in ("stages",):
        found = [each for each in found if each.recipe]
    if fault in ("ranks", "pause", "stall"):
        found = [each for each in found if each.world > 1]
    return found


def planned(
    lab: Lab, fault: str, setups: list[Setup], trials: int, seed: int
) -> Iterator[tuple[Fault, Setup, int]]:
    """What to do in each trial of a fault: the fault itself, the setup and the seed."""
    if fault != "calls":
        for number in range(trials):
            yield FAULTS[fault], setups[number % len(setups)], seed + number // len(setups)
        return
    # Every call of a save by every rank; with fewer trials, evenly spread over them.
    points: list[tuple[Setup, int, int]] = []
    for setup in setups:
        for rank in range(setup.world):
            count = _count(lab, setup, rank)
            points += [(setup, rank, at) for at in range(count)]
    if trials < len(points):
        points = [points[number * len(points) // trials] for number in range(trials)]
    for number, (setup, rank, at) in enumerate(points):
        half = bool((number + seed) % 2)
        do: Fault = partial(kills.kill_at_call, rank=rank, at=at, half=half)
        yield do, setup, seed + number


def _count(lab: Lab, setup: Setup, rank: int) -> int:
    counted: list[int] = []

    def do(bench: Any) -> None:
        counted.append(kills.count_calls(bench, rank))

    trial = run_trial(lab, "calls", do, setup, 0)
    assert counted, trial
    return counted[0]


def remove_stock_buffers() -> None:
    """Remove what stock ranks leave, 66 MiB each: some hundred trials would fill /dev/shm.

    A rank of another campaign that has mapped its buffer keeps the mapping.
    """
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*"):
        if time.time() - path.stat().st_mtime > 60:
            path.unlink(missing_ok=True)


def run_campaign(
    lab: Lab, faults: dict[str, int], seed: int, *, stock: bool, only: str, known: set[Key]
) -> Iterator[Trial]:
    """The trials of one side that are not `known`, each printed as it ends."""
    for fault, trials in faults.items():
        setups = setups_for(fault, stock, only)
        if not setups or (stock and fault not in ON_STOCK):
            continue
        for do, setup, number in planned(lab, fault, setups, trials, seed):
            if (fault, str(setup), number) in known:
                continue
            trial = run_trial(lab, fault, do, setup, number)
            remove_stock_buffers()
            print(f"{'PROBLEM' if trial.problems else 'ok':8}{trial}", flush=True)
            yield trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="per fault and side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--faults", default="all", help=f"FAULT or FAULT:TRIALS of {','.join(FAULTS)}"
    )
    parser.add_argument("--setup", default="", help="only those that begin so: hf, wikillm/2x")
    parser.add_argument("--stock", action="store_true", help="also Hugging Face's Trainer")
    more = "run the trials that FILE lacks"
    parser.add_argument("--continue", action="store_true", dest="goes_on", help=more)
    parser.add_argument("--to", type=Path, default=REPO / "runs" / "faults.json")
    options = parser.parse_args()
    names = list(FAULTS) if options.faults == "all" else options.faults.split(",")
    given = dict(name.partition(":")[::2] for name in names)
    faults = {
        name: int(count) if count else max(1, options.trials // SLOW.get(name, 1))
        for name, count in given.items()
    }
    unknown = sorted(set(faults) - set(FAULTS))
    if unknown:
        parser.error(f"no such faults: {', '.join(unknown)}; of {', '.join(FAULTS)}")

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("wikillm").setLevel(logging.ERROR)  # the sweep warns of each buffer
    folder = Path(tempfile.mkdtemp(prefix="wikillm-faults-"))
    # Both must be there before the fork server starts.
    if {"calls", "power"} & set(faults):
        interpose.preload(interpose.build(folder))
    if "disk" in faults and not damage.own_mounts():
        print("skipped: disk, which needs root and mount namespaces")
        del faults["disk"]
    lab = Lab(folder)
    began = time.time()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    content = read_campaign(options.to) if options.goes_on else {"trials": []}
    done = [Trial(**trial) for trial in content["trials"]]
    known = {(trial.fault, trial.setup, trial.seed) for trial in done}
    before = content.get("facts", {}).get("seconds", 0)
    for stock in (False, True) if options.stock else (False,):
        trials = run_campaign(
            lab, faults, options.seed, stock=stock, only=options.setup, known=known
        )
        for trial in trials:
            done.append(trial)
            content["trials"].append(trial.to_json())
            content["facts"] = facts(options.trials, options.seed, before + time.time() - began)
            # After each trial: a campaign of hours may be ended early, also while it writes.
            write_json(options.to, content)
    print(table(content))
    failed = [trial for trial in done if trial.problems and not trial.setup.startswith("hf")]
    print(f"{len(done)} trials, {len(failed)} WikiLLM trials with problems; {options.to}")
    for trial in failed:
        print(f"  make faults N=1 ARGS='{str(trial).split(': ')[0]}'")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


def read_campaign(path: Path) -> dict[str, Any]:
    """What an earlier campaign wrote; nothing where there was none."""
    if not path.exists():
        return {"trials": []}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def facts(trials: int, seed: int, seconds: float) -> dict[str, Any]:
    from importlib import metadata

    versions = {name: metadata.version(name) for name in ("torch", "transformers", "deepspeed")}
    return {
        "trials": trials, "seed": seed, "seconds": round(seconds), "versions": versions,
        "cores": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release(),
    }  # fmt: skip


if __name__ == "__main__":
    random.seed(0)
    raise SystemExit(main())
