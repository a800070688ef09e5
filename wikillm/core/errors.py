"""Errors that a user can act on: what is wrong, what was found (and where), how to fix it.

WikiLLM refuses an input by raising a `WikiLLMError`. The command line prints the error without a
traceback and exits with its `exit_code`; `--debug` adds the traceback. `Problems` reports several
problems as one error, so that a user can fix all of them at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `wikillm`. `RUN/exit.json` has the code too, because torchrun turns every
    failure into 1."""

    DONE = 0
    BUG = 1
    CONFIG = 2
    MACHINE = 3
    DATA = 4
    DIVERGED = 5
    CHECKPOINT = 6
    CORRUPTED = 7
    STOPPED = 75  # stopped on request and can be resumed (EX_TEMPFAIL of sysexits.h)


class WikiLLMError(Exception):
    """An error that a user can act on.

    Args:
        what: one sentence that says what is wrong.
        got: the value or state that was found, and where it came from.
        fix: what to do, if possible as text to paste.
    """

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, what: str, got: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.got = got
        self.fix = fix

    def __reduce__(self) -> tuple[type, tuple[str, str | None, str | None]]:
        # Worker processes pickle their errors; the default pickling would lose `got` and `fix`.
        return type(self), (self.what, self.got, self.fix)

    def __str__(self) -> str:
        lines = [_shortened(self.what)]
        if self.got:
            lines += ["  " + _shortened(line) for line in self.got.splitlines()]
        if self.fix:
            first, *rest = self.fix.splitlines()
            lines += ["  fix: " + first, *("       " + line for line in rest)]
        return "\n".join(lines)


class ConfigError(WikiLLMError):
    """The command line, a YAML file, a preset or a DeepSpeed JSON asks for something impossible."""

    exit_code = ExitCode.CONFIG


class MachineError(WikiLLMError):
    """The machine or the process group lacks what the run needs.

    `lost_rank` is the rank that ended, or that blocks the other ranks.
    """

    exit_code = ExitCode.MACHINE
    lost_rank: int | None = None


class CorruptedWeightsError(WikiLLMError):
    """The weights of a rank differ from those of ranks whose weights must be equal."""

    exit_code = ExitCode.CORRUPTED


class DataError(WikiLLMError):
    """A source, a tokenizer or a token store cannot be used."""

    exit_code = ExitCode.DATA


class DivergedError(WikiLLMError):
    """The loss or the gradient is no longer a finite number."""

    exit_code = ExitCode.DIVERGED


class CheckpointError(WikiLLMError):
    """A checkpoint is missing, incomplete, damaged, or belongs to another run."""

    exit_code = ExitCode.CHECKPOINT


class StoppedError(WikiLLMError):
    """The run stopped on request after a complete checkpoint; it can be resumed.

    `is_alone` means that this rank stopped before the first step, when there was nothing to save
    and the ranks had not voted.
    """

    exit_code = ExitCode.STOPPED
    is_alone = False


def _shortened(line: str) -> str:
    """`line`, or only its beginning and end if it is longer than 1,000 characters."""
    return line if len(line) <= 1000 else f"{line[:500]} ... {line[-300:]}"


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name most similar to `word`, or None if no similarity reaches `cutoff` (0 to 1)."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


class Problems:
    """Collects problems and raises them as one error.

    >>> problems = Problems(ConfigError)
    >>> problems.add("train.tokens is negative.", got="-5", fix="train.tokens=1_000_000")
    >>> problems.raise_if_any()  # raises ConfigError
    """

    def __init__(self, kind: type[WikiLLMError]) -> None:
        self._kind = kind
        self._found: list[WikiLLMError] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, what: str, got: str | None = None, fix: str | None = None) -> None:
        self._found.append(self._kind(what, got, fix))

    def raise_if_any(self) -> None:
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            body = "\n".join(f"{i}. {problem}" for i, problem in enumerate(self._found, start=1))
            raise self._kind(f"{len(self._found)} problems.", got=body)
