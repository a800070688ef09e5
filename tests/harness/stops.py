"""Requests to stop or to save in a chosen phase of a real run, made from outside the code."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from harness.programs import train


def train_and_ask(
    words: list[str], phase: str, ask: str, rank: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train`; when `rank` first enters `phase`, it makes a request: "signal" or a file's path.

    A phase after the first step begins only at step 4. A request by file waits here until it is
    noticed. With the option `files_after` another file is made when the next save has ended.
    `entered` counts how often each phase was entered after the request.
    """
    from wikillm.supervise import requests
    from wikillm.supervise.heartbeat import PHASES, Heartbeat

    requests.LOOK_SECONDS = 0.2
    after = options.pop("files_after", None)
    entered: dict[str, int] = {}
    enter = Heartbeat.enter
    is_asked = False

    def asking_enter(self: Heartbeat, name: str) -> None:
        nonlocal is_asked
        enter(self, name)
        now = PHASES[self._phase]
        if is_asked:
            entered[now] = entered.get(now, 0) + 1
            if after and entered.get("save") and now == "step":
                Path(after).touch()
        is_late = now not in ("supply", "data", "step") or self._step >= 3
        if now == phase and is_late and not is_asked and os.environ["RANK"] == str(rank):
            is_asked = True
            if ask == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                Path(ask).parent.mkdir(exist_ok=True)
                Path(ask).touch()
                time.sleep(1.0)

    Heartbeat.enter = asking_enter  # type: ignore[method-assign]
    return {**train(words, **options), "entered": entered}


def train_ask_and_exit(*args: Any) -> None:
    """`train_and_ask`; the process ends with the exit code of the run."""
    os._exit(train_and_ask(*args)["code"])


def train_with_a_slow_first_step(
    words: list[str], seconds: float, options: dict[str, Any]
) -> dict[str, Any]:
    """Run `train` with a first step that takes longer than a stop may wait; rank 1 is asked."""
    from wikillm.supervise.signals import StopSignals
    from wikillm.train.trainer import WikiTrainer

    StopSignals.FIRST_STEP_SECONDS = 1.0
    training_step = WikiTrainer.training_step

    def slow_step(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.1)
        return training_step(self, *args, **kwargs)

    WikiTrainer.training_step = slow_step  # type: ignore[method-assign]
    os._exit(train(words, **options)["code"])
