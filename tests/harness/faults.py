"""Faults that one rank of a real run meets, from outside the code under test."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from harness.programs import train


def train_and_break(words: list[str], fault: str, rank: int, options: dict[str, Any]) -> None:
    """`train` in which one rank meets a fault at its fourth step, or in set-up; ends with the code of the run.

    Faults: kill, suspend, hang-up, terminate (signals to itself), fail (an error of its own); "set-up kill" and
    "set-up terminate" when the model has been built and the others continue to DeepSpeed's collectives.
    """
    from wikillm.train import run
    from wikillm.train.trainer import WikiTrainer

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    place, _, what = fault.rpartition(" ")
    numbers = {
        "kill": signal.SIGKILL,
        "suspend": signal.SIGSTOP,
        "hang-up": signal.SIGHUP,
        "terminate": signal.SIGTERM,
    }

    def meet() -> None:
        if what == "fail":
            raise OSError(5, "Input/output error", "/data/shard_7.bin")
        os.kill(os.getpid(), numbers[what])

    training_step, build_model = WikiTrainer.training_step, run.build_model

    def breaking_step(self: WikiTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            meet()
        return training_step(self, *args, **kwargs)

    def breaking_build(*args: Any, **kwargs: Any) -> Any:
        meet()
        return build_model(*args, **kwargs)

    if os.environ["RANK"] == str(rank) and place:
        run.build_model = breaking_build
    elif os.environ["RANK"] == str(rank):
        WikiTrainer.training_step = breaking_step  # type: ignore[method-assign]
    with contextlib.suppress(OSError):
        os._exit(train(words, **options)["code"])
    os._exit(1)
