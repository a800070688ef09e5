"""Where the live view is shown, what it shows, and that it cannot end a run."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
from harness.terminal import Terminal, terminal

from wikillm.core.log import say
from wikillm.observe.live import LiveView, sparkline, wants_live_view

VALUES = {"step": 3.0, "tokens": 300.0, "loss": 2.5, "tokens_per_second": 50.0,
          "data_wait_fraction": 0.25, "memory_bytes": 2.0**30}  # fmt: skip


@contextmanager
def stdout_on(tty: Terminal) -> Iterator[TextIO]:
    """`sys.stdout` writes to the terminal inside the block."""
    before = sys.stdout
    with open(tty.path, "w", encoding="utf-8") as out:
        sys.stdout = out
        try:
            yield out
        finally:
            sys.stdout = before


@pytest.mark.parametrize(
    ("environ", "setting", "wanted"),
    [
        ({"TERM": "xterm"}, "auto", True),
        ({"TERM": "xterm"}, "off", False),
        ({"TERM": "xterm", "CI": "true"}, "auto", False),
        ({"TERM": "dumb"}, "auto", False),
        ({}, "auto", False),
    ],
)
def test_the_view_is_shown_only_on_a_terminal_that_can_be_redrawn(
    environ: dict[str, str], setting: str, wanted: bool
) -> None:
    with terminal() as tty, open(tty.path, "w", encoding="utf-8") as out:
        assert wants_live_view(out, environ, setting=setting) is wanted
    assert not wants_live_view(io.StringIO(), environ, setting=setting)


def test_the_view_shows_the_values_of_the_records() -> None:
    with terminal() as tty, stdout_on(tty):
        shown = LiveView(10, 1000, 4)
        shown.start()
        shown.record(VALUES)
        shown.show_evaluation(2.75)
        say("a line of the run [bold]not markup[/bold] :smile:")
        say("waiting for data", end="\r")
        shown.stop()
        say("after the view", end="\r")
    assert "30%  14.0s left" in tty.text  # 700 tokens at 50 a second
    assert "loss 2.5000  ▄  validation 2.7500" in tty.text
    assert "50 tokens/s  wait 25%  memory 1 GiB  next save at step 4" in tty.text
    assert "a line of the run [bold]not markup[/bold] :smile:" in tty.text
    assert "waiting for data" in tty.text and "after the view\r" in tty.text


def test_a_terminal_that_goes_away_ends_the_view_only() -> None:
    with terminal() as tty, stdout_on(tty) as out:
        shown = LiveView(10, 1000, None)
        shown.start()
        out.close()
        shown.record(VALUES)
        shown.step(4)
        shown.stop()


def test_a_view_that_cannot_be_drawn_ends() -> None:
    with terminal() as tty, stdout_on(tty):
        shown = LiveView(10, 1000, None)
        shown.start()
        assert shown.is_shown
        shown.record({"tokens": "many", "tokens_per_second": 1.0})  # type: ignore[dict-item]
        assert not shown.is_shown
        say("the run goes on")
    assert tty.text.endswith("the run goes on\r\n")


def test_a_sparkline_spans_the_values() -> None:
    assert sparkline([1.0, 2.0, 8.0]) == "▁▂█"
    assert sparkline([3.0, 3.0]) == "▄▄"
