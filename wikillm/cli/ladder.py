"""`wikillm ladder`: train small models by the laws of `model.depth`, and predict the loss of a
large model."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wikillm.cli.arguments import above_0, add_json, not_negative
from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.config.resolved import Resolved
from wikillm.config.size_laws import horizon
from wikillm.core.errors import ConfigError, MachineError
from wikillm.core.files import read_object
from wikillm.core.units import format_count
from wikillm.observe.redact import redact_argument
from wikillm.observe.sinks import read_records
from wikillm.plan.params import count_parameters, flops_per_token
from wikillm.plan.workload import describe_workload

if TYPE_CHECKING:
    from wikillm.plan.ladder import Prediction, Rung

EPILOG = """
Every run is kept in FOLDER/depth-N and resumes where it was stopped; finished runs are not
repeated. All settings of a run can be given:
  wikillm ladder --depths 2 3 4 5 --predict 12 data.path=zhwiki.jsonl
  wikillm ladder --depths 6 8 10 --predict 24 --command "deepspeed train.py --deepspeed zero1"
With four or more runs, the largest is also predicted from the others, to show the error.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)
    parser.epilog = EPILOG
    add = parser.add_argument
    help = "the depths to train (default 2 3 4)"
    add("--depths", type=int, nargs="+", default=[2, 3, 4], metavar="N", help=help)
    add("--predict", type=int, required=True, metavar="N", help="the depth to predict")
    help = "tokens per parameter, for all runs and the prediction. Default: by the laws"
    add("--tokens-per-parameter", type=above_0, metavar="R", help=help)
    help = "standard deviation of a run's loss over seeds, in nats (default 0.025)"
    add("--noise", type=not_negative, default=0.025, metavar="X", help=help)
    help = "how each run is started (default: wikillm train, in this environment)"
    add("--command", metavar="WORDS", help=help)
    help = "where the runs are kept (default runs/ladder)"
    add("--folder", type=Path, default=Path("runs/ladder"), help=help)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from wikillm.plan.ladder import MIN_RUNGS, predict

    depths = sorted(set(args.depths))
    if len(depths) < MIN_RUNGS:
        raise ConfigError(
            "A prediction needs three sizes or more.",
            got=f"--depths {' '.join(map(str, depths))}",
            fix="--depths 2 3 4",
        )
    if args.predict <= depths[-1]:
        raise ConfigError(
            "--predict must be greater than every trained depth.",
            got=f"--predict {args.predict}, --depths {' '.join(map(str, depths))}",
        )
    # Every depth is resolved before the first run, so that a mistake is found before training.
    target = _planned(args, args.predict)
    planned = {depth: _planned(args, depth) for depth in depths}
    rungs = [_rung(args, depth, *planned[depth]) for depth in depths]
    target_flops = _sizes(*target)["flops"]
    found = predict(rungs, target_flops, args.noise)
    check = predict(rungs[:-1], rungs[-1].flops, args.noise) if len(rungs) > 3 else None
    if args.json:
        print(json.dumps(_to_json(args.predict, rungs, found, check), indent=2))
    else:
        print("\n".join(_lines(args.predict, rungs, found, check)))
    return 0


def _planned(args: argparse.Namespace, depth: int) -> tuple[Resolved, int]:
    """(configuration of the run of a depth, rows of its embedding)."""
    words = [f"model.depth={depth}"]
    resolved = resolve_run_config(args, words)
    rows = describe_workload(resolved, ranks=1).vocab_size
    if args.tokens_per_parameter is None:
        return resolved, rows
    tokens = horizon(depth, rows, args.tokens_per_parameter)
    return resolve_run_config(args, [*words, f"train.max_tokens={tokens}"]), rows


def _sizes(resolved: Resolved, rows: int) -> dict[str, Any]:
    model = resolved.config.model
    train = resolved.config.train
    tokens = train.max_tokens or 0
    per_token = flops_per_token(model, rows, train.sequence_length)
    return {
        "parameters": count_parameters(model, rows).total,
        "tokens": tokens,
        "flops": float(per_token) * tokens,
    }


def _rung(args: argparse.Namespace, depth: int, resolved: Resolved, rows: int) -> Rung:
    """Train the run of a depth, unless it has finished. Returns its sizes and last held-out
    loss."""
    from wikillm.plan.ladder import Rung

    folder = args.folder / f"depth-{depth}"
    tokens = resolved.config.train.max_tokens
    words = [*_given(args), f"model.depth={depth}", f"train.max_tokens={tokens}"]
    words += [f"run.dir={folder}", "--resume", "auto"]
    if read_object(folder / "exit.json").get("code") == 0:
        _check_same_words(folder, words)
    else:
        command = shlex.split(args.command) if args.command else [sys.executable, "-m", "wikillm"]
        command = [*command, *([] if args.command else ["train"]), *words]
        print(shlex.join(command), file=sys.stderr, flush=True)
        code = subprocess.run(command).returncode
        if code != 0:
            raise MachineError(
                f"The run of depth {depth} ended with exit code {code}.",
                got=shlex.join(command),
                fix="correct the error shown above and repeat the command; finished runs are kept",
            )
    losses = [e for e in read_records(folder / "events.jsonl") if "eval_loss" in e]
    if not losses:
        raise ConfigError(f"{folder} has no held-out loss.", fix=f"remove {folder}, and run again")
    sizes = _sizes(resolved, rows)
    return Rung(
        depth, sizes["parameters"], sizes["tokens"], sizes["flops"], losses[-1]["eval_loss"]
    )


def _check_same_words(folder: Path, words: list[str]) -> None:
    """Raises ConfigError if the finished run in `folder` was started with other settings."""
    # The record has no secrets, and no queries of URLs.
    words = [redact_argument(word) for word in words]
    started = read_object(folder / "environment.json").get("command") or []
    then = started[-len(words) :]
    if sorted(then) != sorted(words):
        before = shlex.join(word for word in then if word not in ("train", *words))
        now = shlex.join(word for word in words if word not in then)
        raise ConfigError(
            f"{folder} holds a finished run with other settings.",
            got=f"then: {before}\nnow: {now}",
            fix=f"--folder with a new name; or remove {folder} to train it again",
        )


def _given(args: argparse.Namespace) -> list[str]:
    config = ["--config", args.config] if args.config else []
    deepspeed = ["--deepspeed", args.deepspeed] if args.deepspeed and not args.command else []
    return [*config, *deepspeed, *args.rest]


def _to_json(
    depth: int, rungs: list[Rung], prediction: Prediction, check: Prediction | None
) -> dict[str, Any]:
    return {
        "depth": depth,
        "prediction": asdict(prediction),
        "largest_from_the_others": asdict(check) if check else None,
        "runs": [asdict(rung) for rung in rungs],
    }


def _lines(
    depth: int, rungs: list[Rung], prediction: Prediction, check: Prediction | None
) -> list[str]:
    lines = [f"{'depth':>5}{'parameters':>13}{'tokens':>10}{'FLOPs':>11}{'held-out loss':>15}"]
    for rung in rungs:
        lines.append(
            f"{rung.depth:>5}{rung.parameters:>13,}{format_count(rung.tokens):>10}"
            f"{rung.flops:>11.2e}{rung.loss:>15.4f}"
        )
    if check is not None:
        off = check.loss - rungs[-1].loss
        lines.append(
            f"check      depth {rungs[-1].depth} from the others: {check.loss:.3f} "
            f"({check.low:.3f} to {check.high:.3f}), measured {rungs[-1].loss:.3f}: {off:+.3f}"
        )
        if not check.low <= rungs[-1].loss <= check.high:
            lines.append("           outside the interval: the prediction below is not reliable")
    lines.append(
        f"prediction depth {depth}: {prediction.loss:.3f} nats/token "
        f"({prediction.low:.3f} to {prediction.high:.3f}, 95 %)"
    )
    lines.append(
        f"fit        {prediction.irreducible:.3f} + A C^-{prediction.exponent:.3f}; "
        "an extrapolation, valid only while the laws hold"
    )
    return lines
