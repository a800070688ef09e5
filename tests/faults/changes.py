"""F17 to F20 and F26: other ranks, stages, loaders and settings, and two runs in one directory."""

from __future__ import annotations

import time
from dataclasses import replace

from faults.lab import SAVE_STEPS, STEPS, Setup
from faults.trials import Bench

WORLDS = (2, 1, 2, 4)
RECIPES = ("zero1", "zero2", "zero3", None, "zero1")
LOADERS = ((), ("train.dataloader_num_workers=1",), ("train.dataloader_num_workers=2",))
DRIFTS = {
    "sequence_length": "train.sequence_length=16",
    "seed": "run.seed=7",
    "max_steps": "train.max_steps=20",
    "global_batch_sequences": "train.global_batch_tokens=128",
    "optimizer": "train.optimizer=muon",
    "ema": "train.ema_decay=0.9",
    "model.num_hidden_layers": "model.num_hidden_layers=3",
    "model.rope_theta": "model.rope_theta=5000",
    "document_mask": "train.document_mask=on",
}
"""What the refusal names, and the word that changes it."""


def _stop_at(bench: Bench, step: int, setup: Setup, words: tuple[str, ...] = ()) -> None:
    """Start with `setup`, and stop all ranks in that step, after which they save."""
    fault = {"rank": 0, "step": step - 1, "signal": "TERM"}
    if not bench.is_ours:  # stock has no such stop: killed in the step after a save
        fault = {"rank": -1, "step": step, "kill": True}
    ended = bench.run.start(fault, setup, words).end()
    if bench.is_ours and any(each.code != 75 for each in ended):
        bench.problem(f"a start with {setup} did not stop with 75: {ended}")


def ranks(bench: Bench) -> None:
    """F17: 2, 1, 2 and 4 ranks in turn, at the same global batch."""
    _in_turn(bench, [replace(bench.setup, world=world) for world in WORLDS])


def stages(bench: Bench) -> None:
    """F18: ZeRO 1, 2, 3, no DeepSpeed, ZeRO 1 in turn."""
    _in_turn(bench, [replace(bench.setup, recipe=recipe) for recipe in RECIPES])


def _in_turn(bench: Bench, setups: list[Setup]) -> None:
    """A seeded walk over the setups, each for one save interval."""
    at = bench.rng.randrange(len(setups))
    turns = [setups[(at + turn) % len(setups)] for turn in range(STEPS // SAVE_STEPS)]
    for number, setup in enumerate(turns[:-1], start=1):
        _stop_at(bench, number * SAVE_STEPS, setup)
        if bench.trial.problems:
            return
    bench.note(" ".join(f"{each.world}x{each.recipe or 'ddp'}" for each in turns))
    bench.finish(turns[-1], level="L2")


def loaders(bench: Bench) -> None:
    """F19: another number of loader workers at each start."""
    first = bench.rng.choice(LOADERS)
    second = bench.rng.choice([each for each in LOADERS if each != first])
    _stop_at(bench, bench.rng.randrange(1, STEPS), bench.setup, first)
    bench.run.more = second
    bench.note(f"{first or 'no workers'}, then {second or 'no workers'}")
    bench.finish()


def drift(bench: Bench) -> None:
    """F20: a setting that the checkpoint contradicts: refused by name, nothing is written."""
    _stop_at(bench, bench.rng.randrange(1, STEPS), bench.setup)
    name, word = bench.rng.choice(list(DRIFTS.items()))
    kept = {path: path.read_bytes() for path in bench.run.folder.glob("*.yaml")}
    more = ("train.max_grad_norm=0",) if "muon" in word else ()
    ended = bench.run.start(words=(word, *more)).end()
    bench.note(word)
    bench.refused(ended, 6, [name])
    if {path: path.read_bytes() for path in kept} != kept:
        bench.problem("a refused start changed the records of the run")
    bench.finish()


def two_runs(bench: Bench) -> None:
    """F26: a second start in the same directory is refused by pid; the first run is exact."""
    job = bench.run.start()
    delay = bench.rng.uniform(0.3, 0.8) * bench.lab.oracle(bench.setup).seconds
    lock = bench.run.folder / ".lock"
    while time.time() - job.began < delay or (job.is_running() and not lock.exists()):
        time.sleep(0.01)
    second = bench.run.start()
    refusals = second.end()
    firsts = job.end()
    bench.note(f"a second start after {delay:.2f} s")
    if any(each.code != 0 for each in firsts):
        bench.problem(f"the first run ended: {firsts}")
    if refusals[0].code == 0:
        bench.note("the first had finished")
    else:
        bench.refused(refusals[:1], 2, [f"pid {job.pids[0]}"])
    bench.judge()
