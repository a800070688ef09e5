"""Faults in one rank of a real run, injected from outside the code under test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from typing import Any

from harness.programs import train


def train_and_break(words: list[str], fault: str, rank: int, options: dict[str, Any]) -> None:
    """Run `train` with a fault in one rank, at its fourth step or during set-up.

    Faults: kill, suspend, hang-up and terminate (signals to itself), fail (an exception), compile
    (an exception with a compiler's long output), hang (in Python) and hold (in C, with the
    interpreter's lock, where no Python thread runs any more).
    "set-up kill" and "set-up terminate" occur after the model is built, while the other ranks
    enter DeepSpeed's collectives. The process ends with the exit code of the run.
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
        if what == "compile":
            raise RuntimeError("shard_7.cpp did not compile:\n" + "an error\n" * 5000)
        if what == "hang":
            a_wait_without_end()
        if what == "hold":
            re.match(r"(a*)*b", "a" * 64)
        os.kill(os.getpid(), numbers[what])

    def a_wait_without_end() -> None:
        while True:
            time.sleep(1.0)

    training_step = WikiTrainer.training_step
    build_model = run.build_model

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
    with contextlib.suppress(OSError, RuntimeError):
        os._exit(train(words, **options)["code"])
    os._exit(1)
