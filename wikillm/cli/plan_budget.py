"""`wikillm plan --hours N`: the size and the horizon that a budget of hours pays for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wikillm.cli.run_config import resolve_run_config
from wikillm.core.errors import ConfigError

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved
    from wikillm.plan.choose import Machine

Planner = Callable[["Resolved", "Machine", argparse.Namespace], dict[str, Any]]


def within_hours(
    args: argparse.Namespace, machine: Machine, plan_run: Planner
) -> tuple[list[str], dict[str, Any]]:
    """(words that set the run, its plan) for `args.hours` on this machine.

    A run with a size (`model.depth` or `model.size`) gets a horizon: as many tokens as the hours
    pay for. A run without one gets the deepest model whose horizon by the laws fits.

    Raises ConfigError where not even one layer fits, or the run names a model of its own.
    """
    from wikillm.config.dial import DEEPEST

    given = list(args.rest)

    def planned(words: list[str]) -> dict[str, Any] | None:
        args.rest = [*given, *words]
        try:
            return plan_run(resolve_run_config(args), machine, args)
        except ConfigError:
            return None

    args.rest = given
    model = resolve_run_config(args).config.model
    if model.depth is not None or model.size is not None:
        plan = plan_run(resolve_run_config(args), machine, args)
        tokens = plan["total_tokens"] * args.hours / plan["choices"][0]["hours"]
        words = [f"train.max_tokens={float(f'{tokens:.2e}'):.0f}"]
        return words, planned(words) or plan
    # Hours grow with the depth: bisection between one that fits and one that does not.
    fits = 0
    too_deep = DEEPEST + 1
    best: dict[str, Any] | None = None
    while too_deep - fits > 1:
        depth = (fits + too_deep) // 2
        plan_of_depth = planned([f"model.depth={depth}"])
        if plan_of_depth is not None and plan_of_depth["choices"][0]["hours"] <= args.hours:
            fits = depth
            best = plan_of_depth
        else:
            too_deep = depth
    if best is None:
        args.rest = [*given, "model.depth=1"]
        smallest = plan_run(resolve_run_config(args), machine, args)
        raise ConfigError(
            "No model fits into these hours with a horizon by the laws.",
            got=f"--hours {args.hours:g}; one layer needs {smallest['choices'][0]['hours']:.2g}",
            fix="more hours or GPUs, or name a size: --size 20m",
        )
    return [f"model.depth={fits}"], best
