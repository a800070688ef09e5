"""A training step: WikiLLM, Hugging Face's Trainer and bare PyTorch loops on equal batches.

Each contender is a separate process that waits before every step until it may run. Steps alternate
and nothing else computes meanwhile, so ratios of neighbouring steps hold on a busy machine too.
On a GPU (`--gpu`, the shapes of the goal table) the contenders do not fit together. There they run
one after another, several steps between two synchronisations, and once more in the opposite order.
Contenders whose first losses differ train different models and get no rows.

    python benchmarks/train.py             # CPU: h=128, 3 layers, V=4,096, 8 x 128 tokens
    python benchmarks/train.py --vocab 32000 --hidden 256
    python benchmarks/train.py --contenders hf hf-compiled wikillm wikillm-compiled --profile
    python benchmarks/train.py --gpu       # 120M, 0.5B, 1.5B, 3B; "not run" without a GPU
    python benchmarks/train.py --gpu --shapes 120m-512-32 --contenders hf wikillm wikillm-compiled

"of GEMM" is the time of the model's FLOPs (plan.params) at the measured rate of the device's matrix
products (float32 on CPU, bf16 on a GPU), as a share of the step. 100 % is the limit. MFU is the
share of the datasheet's peak.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import functools
import json
import math
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

from benchmarks.contender_process import Contender, Shape
from benchmarks.record import circumstances, gemm_flops, paired_ratio, report, write_partial
from wikillm.config.load import load
from wikillm.plan.gpus import peak_flops
from wikillm.plan.params import flops_per_token

CONTENDERS = {
    "hf": "Hugging Face's Trainer, stock",
    "bare": "PyTorch loop, stock loss",
    "bare-fused": "PyTorch loop, fused loss",
    "wikillm": "WikiLLM (pretrain)",
    "hf-liger": "Hugging Face's Trainer, use_liger_kernel",
    "hf-compiled": "Hugging Face's Trainer, torch_compile",
    "wikillm-compiled": "WikiLLM, train.compile=layers",
    "wikillm-elementwise": "WikiLLM, train.compile=elementwise",
    "wikillm-fp8": "WikiLLM, train.loss_kernel=fp8",
}
ON_CPU = ("hf", "bare", "bare-fused", "wikillm")  # the others need Triton, or a minute to compile
ON_GPU = ("hf", "hf-liger", "hf-compiled", "bare-fused", "wikillm", "wikillm-compiled")
STRETCH = 10
"""Steps between two synchronisations on a GPU: the host may run ahead, as in a run."""
SAME_MODEL = 0.02
"""First losses that differ by more are of different models; bf16 rounding is a tenth of it."""


# What fits into 80 GB by the planner's formula, stock too but for the goal's 64 x 512 (a test holds
# it). Qwen2's vocabulary is said, or the run would take that of the little tokenizer.
_NAMES = ("120m-512-32", "120m-512-64", "120m-2048-8", "0.5b-2048-8", "1.5b-4096-2", "3b-4096-2")


def shape_named(name: str) -> Shape:
    """Of PRESET-LENGTH-BATCH. Raises ValueError for another name."""
    preset, length, batch = name.rsplit("-", 2)
    words = [f"model.preset={preset}", "model.vocab_size=151936", "train.precision=bf16"]
    words += ["train.gradient_checkpointing=full"] if preset == "3b" else []
    return Shape(f"{preset}, {batch} x {length}", tuple(words), int(batch), int(length))


GPU_SHAPES = {name: shape_named(name) for name in _NAMES}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="the goal table; about a minute per contender, shape and visit",
    )
    names = f"of --gpu, PRESET-LENGTH-BATCH; default: {' '.join(_NAMES)}"
    parser.add_argument("--shapes", nargs="+", type=shape_named, metavar="NAME", help=names)
    parser.add_argument(
        "--visits", type=int, default=2, help="with --gpu: how often each contender runs"
    )
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not counted")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=tuple(CONTENDERS),
        help=f"default: {' '.join(ON_CPU)}; with --gpu {' '.join(ON_GPU)}",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="where the time goes, by torch's profiler, in the last 2 steps",
    )
    precision = "of all contenders (default: bf16 on a GPU, fp32 on a CPU)"
    parser.add_argument("--precision", choices=("fp32", "bf16"), help=precision)
    parser.add_argument("--plot", type=Path, help="write tokens/s as bars (SVG); needs matplotlib")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser.parse_args()


def write_text(path: Path) -> None:
    """Learnable text of 1 MB: products in words. What it says does not matter to a step's time."""
    with open(path, "w", encoding="utf-8") as file:
        for n in range(4000):
            text = " ".join(f"{n} times {k} is {n * k}." for k in range(1, 14))
            file.write(json.dumps({"text": text}) + "\n")


def measure(
    shape: Shape,
    names: list[str],
    steps: int,
    warmup: int,
    *,
    visits: int = 0,
    stretch: int = 1,
    profiled: int = 0,
    save: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """{contender: wall and CPU seconds of each counted turn, losses, peak}, or {"error": ...}.

    Args:
        steps: counted turns; a turn is `stretch` steps, and its seconds are those of one of them.
        warmup, profiled: turns before and after them that do not count.
        save: called with what is known after each visit.
        visits: 0: all contenders in turns. N: one after another, N times, every other time in
            the opposite order.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl")
        if not visits:
            return _measure_group(shape, names, steps, warmup, folder, profiled, stretch)
        for visit in range(visits):
            for one in names if visit % 2 == 0 else reversed(names):
                before = found.get(one, {})
                if "error" in before or "later_error" in before:
                    continue
                group = _measure_group(shape, [one], steps, warmup, folder, profiled, stretch)
                found[one] = joined(before, group[one])
                save(found)
    return {name: found[name] for name in names}


def joined(before: dict[str, Any], visit: dict[str, Any]) -> dict[str, Any]:
    """A contender's visits together. A failed one leaves the good ones before it as they are."""
    if "error" in visit:
        return before | {"later_error": visit["error"]} if before else visit
    return visit | {kind: before.get(kind, []) + visit[kind] for kind in ("wall", "cpu")}


def differ(found: dict[str, Any]) -> str | None:
    """Why the rows are not comparable: first losses of different models or batches."""
    first = {name: result["losses"][0] for name, result in found.items() if "error" not in result}
    are_numbers = all(map(math.isfinite, first.values()))
    if not first or (
        are_numbers
        and max(first.values()) - min(first.values()) <= SAME_MODEL * min(first.values())
    ):
        return None
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in first.items())
    return f"the contenders do not train the same model, their first losses are {losses}"


def reason(error: str) -> str:
    """The sentence of a failed contender's log that says what is wrong."""
    if "out of memory" in error.lower():
        return "out of memory"
    if killed := re.match(r"\S+ ended with -(\d+):", error):
        return f"killed by signal {killed[1]}" + (
            ", perhaps for memory" if killed[1] == "9" else ""
        )
    lines = [
        line
        for line in error.strip().splitlines()
        if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b", line)
    ]
    return (lines or error.strip().splitlines() or ["ended without a word"])[-1][:100]


def _measure_group(
    shape: Shape,
    names: list[str],
    steps: int,
    warmup: int,
    folder: Path,
    profiled: int,
    stretch: int,
) -> dict[str, Any]:
    """Profiled turns come after the counted ones and count nowhere."""
    found: dict[str, Any] = {}
    total = warmup + steps + profiled
    running: list[Contender] = []
    for name in names:
        try:
            running.append(Contender(name, shape, folder, total, profiled, stretch))
        except ChildProcessError as error:
            found[name] = {"error": str(error)}
    taken: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in running}
    for turn in range(total):
        first = turn % max(1, len(running))
        for contender in running[first:] + running[:first]:
            if contender.name in found:
                continue
            try:
                taken[contender.name].append(contender.step())
            except ChildProcessError as error:
                found[contender.name] = {"error": str(error)}
    for contender in running:
        contender.close()
    for name, reports in taken.items():
        if name not in found:
            counted = reports[warmup : warmup + steps]
            found[name] = {kind: [r[kind] for r in counted] for kind in ("wall", "cpu")}
            found[name] |= {"losses": reports[-1]["losses"], "peak": reports[-1]["peak"]}
            found[name] |= {key: reports[-1].get(key, {}) for key in ("profile", "kinds")}
    return found


def flops_of(shape: Shape) -> int:
    """Model FLOPs per token of a shape, forward and backward."""
    model = load(None, [*shape.words, "data.path=unused", "train.max_steps=1"]).config.model
    assert model.vocab_size != "auto", (
        "the vocabulary of the little tokenizer is not what is measured"
    )
    return flops_per_token(model, model.vocab_size, shape.length)


def rows_of(shape: Shape, found: dict[str, Any], facts: dict[str, Any]) -> list[list[str]]:
    rows, flops, tokens = [], flops_of(shape), shape.batch * shape.length
    for name, result in found.items():
        if "error" in result:
            rows.append([shape.name, CONTENDERS[name], reason(result["error"]), *[""] * 8])
            continue
        step = statistics.median(result["wall"])
        result["tokens_per_second"] = tokens / step
        cells = [
            shape.name,
            CONTENDERS[name],
            f"{1e3 * step:.1f}",
            f"{1e3 * statistics.median(result['cpu']):.1f}",
        ]
        cells.append(f"{tokens / step:,.0f}")
        for other in ("hf", "bare-fused"):
            if other == name or "wall" not in found.get(other, {}):
                cells.append("1" if other == name else "")
                continue
            ratio = {
                kind: paired_ratio(found[other][kind], result[kind]) for kind in ("wall", "cpu")
            }
            facts.setdefault("ratios", {})[f"{shape.name}: {other} / {name}"] = ratio
            cells.append(f"{ratio['wall']['median']:.2f} (CPU s {ratio['cpu']['median']:.2f})")
        speed = flops * tokens / step
        cells.append(f"{speed / facts['peak_flops']:.1%}" if facts["peak_flops"] else "")
        cells.append(f"{speed / facts['gemm_flops']:.1%}")
        rows.append([*cells, f"{result['peak'] / 1e9:.2f}", f"{result['losses'][-1]:.6f}"])
    return rows


def print_profile(found: dict[str, Any]) -> None:
    for name, result in found.items():
        if result.get("profile"):
            print(f"\nWhere the time goes: {CONTENDERS[name]}")
        for row in result.get("profile", []):
            print(
                f"  {row['share']:6.1%} {row['ms']:10.1f} ms {row['calls']:6} x  "
                f"{row['operation'][:90]}"
            )


def main() -> None:
    import torch

    args = arguments()
    if args.gpu and not torch.cuda.is_available():
        raise SystemExit("not run: no GPU here")
    names = args.contenders or list(ON_GPU if args.gpu else ON_CPU)
    heads = max(1, args.hidden // 32)
    fields = f"hidden_size={args.hidden} num_hidden_layers={args.layers} vocab_size={args.vocab} "
    fields += f"num_attention_heads={heads} num_key_value_heads={max(1, heads // 2)} "
    fields += f"intermediate_size={4 * args.hidden}"
    words = ("model.preset=tiny", *(f"model.{field}" for field in fields.split()))
    sizes = f"V={args.vocab:,}, {args.batch} x {args.length}"
    name = f"h={args.hidden}, {args.layers} layers, {sizes}"
    precision = f"train.precision={args.precision or ('bf16' if args.gpu else 'fp32')}"
    own = Shape(name, (*words, precision), args.batch, args.length)
    facts: dict[str, Any] = {"circumstances": circumstances(), "steps": args.steps, "shapes": {}}
    facts["gemm_flops"] = gemm_flops()
    if args.gpu:  # the contenders are other processes, and share the card with this one
        torch.cuda.empty_cache()
    facts["peak_flops"] = (
        peak_flops(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    )
    turns = {"steps": args.steps, "warmup": args.warmup, "profiled": 2 if args.profile else 0}
    if args.gpu:  # in stretches, at least three
        turns = {"steps": max(3, args.steps // STRETCH), "warmup": -(-args.warmup // STRETCH)}
        turns |= {"profiled": 1 if args.profile else 0, "stretch": STRETCH, "visits": args.visits}
    medians = (
        f"{turns['steps'] * args.visits} stretches of {STRETCH}" if args.gpu else str(args.steps)
    )
    rows: list[list[str]] = []
    started = time.monotonic()
    for shape in (args.shapes or GPU_SHAPES.values()) if args.gpu else [own]:
        save = functools.partial(write_partial, facts, shape.name, args.out)
        found = facts["shapes"][shape.name] = measure(shape, names, save=save, **turns)
        if refused := differ(found):
            facts.setdefault("refused", {})[shape.name] = refused
        else:
            rows += rows_of(shape, found, facts)
    header = ["shape", "contender", "ms/step", "CPU ms", "tokens/s", "x HF Trainer"]
    header += ["x fused loop", "MFU", "of GEMM", "peak GB", "last loss"]
    bars = {
        shape: {
            CONTENDERS[name]: r["tokens_per_second"] for name, r in found.items() if "wall" in r
        }
        for shape, found in facts["shapes"].items()
        if shape not in facts.get("refused", {})
    }
    title = f"Training steps, medians of {medians} ({time.monotonic() - started:.0f} s)"
    report(title, facts, header, rows, args.out, plot=args.plot, tokens_per_second=bars)
    for found in facts["shapes"].values():
        print_profile(found)
    for name, refused in facts.get("refused", {}).items():
        print(f"no rows for {name}: {refused}", file=sys.stderr)
    if "refused" in facts or not any(
        "wall" in result for found in facts["shapes"].values() for result in found.values()
    ):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
