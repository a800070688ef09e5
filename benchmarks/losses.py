"""Output projection and loss alone: ours, torch's, Liger's, stock; time, memory, gradients.

`kernels.py` measures a loss inside a model; this compares the candidates. Turns are
interleaved in one process, each memory peak comes from its own process. What is not there
(Liger, a GPU, a newer torch) is named and left out.

    # 4,096 rows, h=256, V=151,936, float32, CPU.
    python benchmarks/losses.py
    python benchmarks/losses.py --rows 2048 --hidden 896 --dtype bf16
    # Rows and widths of 120M to 7B in bf16.
    python benchmarks/losses.py --gpu
    # Whether they run at all.
    TRITON_INTERPRET=1 python benchmarks/losses.py --rows 32 --hidden 16 --vocab 64 \\
        --contenders stock liger liger-rows
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # instead of this folder: see kernels.py
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch._inductor.config
import torch.nn.functional as F

from benchmarks.record import (
    circumstances,
    interleaved,
    paired_ratio,
    peak_bytes,
    report,
    run_in_fresh_process,
    write_partial,
)
from wikillm.experimental.registry import LOSSES
from wikillm.kernels.chunks import loss_chunk_rows
from wikillm.kernels.dispatch import loss_function
from wikillm.kernels.reference import linear_cross_entropy as stock

CONTENDERS = {
    "stock": "projection, float32 logits, cross entropy",
    "torch": "F.linear_cross_entropy, its own chunks",
    "torch-rows": "F.linear_cross_entropy, our rows per chunk, float32 sums",
    "liger": "Liger, its default chunks",
    "liger-rows": "Liger, our rows per chunk, float32 sums",
    "chunked": "WikiLLM, chunked",
    "triton": "WikiLLM, triton",
    "fp8": "WikiLLM, fp8: 8-bit products",
    "inductor": "the stock loss compiled with Inductor's auto_chunker",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GPU_SHAPES = (
    (32_768, 512),
    (16_384, 896),
    (16_384, 1536),
    (8_192, 2048),
    (8_192, 3584),
)  # 120M, 0.5B, 1.5B, 3B, 7B
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4096, help="tokens")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu", action="store_true", help="the shapes of the presets, in bf16")
    names = "default: all; on a CPU without inductor, which compiles for a minute"
    parser.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), help=names)
    parser.add_argument("--plot", type=Path, help="write tokens/s as bars (SVG); needs matplotlib")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--memory-of", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)
    return parser.parse_args()


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def missing(name: str) -> str | None:
    """Why a contender cannot run here."""
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if name.startswith("torch") and not hasattr(F, "linear_cross_entropy"):
        return f"not in torch {torch.__version__}"
    if name.startswith("liger") and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if (name.startswith("liger") or name == "triton") and device() == "cpu" and not interprets:
        return "needs a GPU"
    if name == "inductor" and not hasattr(torch._inductor.config, "auto_chunker"):
        return f"no auto_chunker in torch {torch.__version__}"
    if name == "fp8" and device() == "cpu":
        return "emulated on a CPU"
    return None


def loss_of(name: str, rows: int, hidden: int, vocab: int) -> Loss:
    """A function of (hidden_NH, weight_VH, labels_N): the mean cross entropy."""
    ours = loss_chunk_rows(rows, vocab, device())
    if name == "stock":
        return lambda x, w, labels: stock(x, w, labels, count=rows)
    if name.startswith("torch"):
        kept: Any = {"batch_chunk_size": ours, "chunking_method": None, "acc_policy": "accurate"}
        options = torch.nn.LinearCrossEntropyOptions(**(kept if name == "torch-rows" else {}))
        return lambda x, w, labels: F.linear_cross_entropy(x, w, labels, options=options)
    if name == "inductor":
        whole = functools.partial(stock, count=rows)
        return torch.compile(whole, dynamic=False, options={"auto_chunker.enable": True})
    if name in ("chunked", *LOSSES):
        function = loss_function(name)
        return lambda x, w, labels: function(x, w, labels, count=rows, chunk_rows=ours)
    from liger_kernel.ops.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyFunction as Liger,
    )

    more: dict[str, Any] = {}
    if name == "liger-rows":
        # Its chunks are a power of two of at least rows / ceil(vocab / (constant x hidden)) rows.
        more = {
            "accum_dtype": torch.float32,
            "chunk_mem_const": max(1, round(ours * vocab / (rows * hidden))),
        }

    def liger(x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        arguments = {"bias": None, "ce_weight": None, "ignore_index": -100, "lse_square_scale": 0.0}
        arguments |= {
            "label_smoothing": 0.0,
            "reduction": "mean",
            "softcap": None,
            "return_z_loss": False,
        }
        rest = [
            more.get("accum_dtype"),
            False,
            False,
            False,
            None,
            None,
            *([more["chunk_mem_const"]] if more else []),
        ]
        found = Liger.apply(x, w, labels, *arguments.values(), *rest)
        return found[0] if isinstance(found, tuple) else found

    return liger


def inputs(
    rows: int, hidden: int, vocab: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values of the size that a trained model has: logits of a standard deviation of about 2."""
    torch.manual_seed(0)
    x = torch.randn(rows, hidden, dtype=torch.float32)
    w = torch.randn(vocab, hidden, dtype=torch.float32) * 2 / hidden**0.5
    labels = torch.randint(0, vocab, (rows,))
    return (
        x.to(device(), dtype).requires_grad_(),
        w.to(device(), dtype).requires_grad_(),
        labels.to(device()),
    )


def step(loss: Loss, x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor) -> float:
    """Forward and backward with new gradients."""
    x.grad = w.grad = None
    value = loss(x, w, labels)
    value.backward()
    return float(value.detach())


def measure(
    args: argparse.Namespace, rows: int, hidden: int
) -> tuple[dict[str, Any], list[list[str]]]:
    """Memory, losses and gradients, then times in turns: figures by contender, and table rows."""
    shape = (rows, hidden, args.vocab)
    names = [name for name in args.contenders if missing(name) is None]
    words = [f"--rows={rows}", f"--hidden={hidden}"]
    words += [f"--vocab={args.vocab}", f"--dtype={args.dtype}"]
    # Peak memory on a CPU: of a process of its own. A GPU's allocator can be asked here.
    found: dict[str, Any] = {name: {} for name in names}
    for name in names if device() == "cpu" else ():
        try:
            found[name] = run_in_fresh_process([*words, f"--memory-of={name}"])
        except SystemExit as error:  # out of memory, above all
            found[name]["error"] = reason(error)
    # Losses and gradients, against those of the first contender. The first run is the warm-up.
    x, w, labels = inputs(*shape, DTYPES[args.dtype])
    own_bytes = x.nbytes + w.nbytes + labels.nbytes
    truth: tuple[torch.Tensor, torch.Tensor] | None = None
    gradients: tuple[torch.Tensor, torch.Tensor] | None = None
    steps: dict[str, Callable[[], Any]] = {}
    for name in names:
        if "error" in found[name]:
            continue
        try:
            loss = loss_of(name, *shape)
            if device() == "cuda":
                gradients = x.grad = w.grad = None
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                others = torch.cuda.memory_allocated() - own_bytes
            found[name]["loss"] = step(loss, x, w, labels)
            if device() == "cuda":
                found[name]["peak"] = peak_bytes("cuda") - others
            gradients = (x.grad.double(), w.grad.double())  # type: ignore[union-attr]
            truth = truth or gradients
            pairs = zip(gradients, truth, strict=True)
            found[name]["gradients"] = [float((g - t).norm() / t.norm()) for g, t in pairs]
        except Exception as error:  # of one contender, which the others can do without
            found[name]["error"] = reason(error)
            continue
        steps[name] = functools.partial(step, loss, x, w, labels)
    del truth, gradients  # 8 bytes per weight each, which the timed runs need
    return found, table_of(
        args.contenders, f"{rows:,} x {hidden}", found, timed(found, steps, args)
    )


def timed(
    found: dict[str, Any], steps: dict[str, Callable[[], Any]], args: argparse.Namespace
) -> dict[str, Any]:
    """Times in turns. A contender that fails is left out, and the others start again."""
    failed: list[str] = []

    def guarded(name: str) -> None:
        try:
            steps[name]()
        except Exception as error:
            found[name]["error"] = reason(error)
            failed.append(name)
            raise

    while steps:
        turns = {name: functools.partial(guarded, name) for name in steps}
        sync = torch.cuda.synchronize if device() == "cuda" else lambda: None
        try:
            return interleaved(turns, args.repeats, sync)
        except Exception:
            if not failed:  # not of a contender
                raise
            del steps[failed.pop()]
            if device() == "cuda":
                torch.cuda.empty_cache()
    return {}


def reason(error: BaseException) -> str:
    """One line of a contender's failure."""
    if "out of memory" in str(error).lower():
        return "out of memory"
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"[:200]


def table_of(
    contenders: list[str], shape: str, found: dict[str, Any], times: dict[str, Any]
) -> list[list[str]]:
    """A row per contender; the ratio to the first one is added to `found`."""
    first = next(iter(times), "")
    table = []
    for name in contenders:
        if name not in times:
            table.append([shape, name, missing(name) or found[name]["error"][:60], *[""] * 6])
            continue
        ratio = {
            kind: paired_ratio(times[first][kind], times[name][kind]) for kind in ("wall", "cpu")
        }
        found[name] |= {**times[name], "ratio": ratio}
        wall = ratio["wall"]
        of_x, of_w = found[name]["gradients"]
        cells = [
            f"{min(times[name]['wall']):.3f}",
            f"{wall['median']:.2f} ({wall['least']:.2f}-{wall['most']:.2f})",
            f"{ratio['cpu']['median']:.2f}",
            f"{found[name]['peak'] / 1e9:.2f}",
            f"{found[name]['loss']:.6f}",
        ]
        table.append([shape, name, *cells, f"{of_x:.1e}", f"{of_w:.1e}"])
    return table


def main() -> None:
    args = arguments()
    if args.contenders is None:
        args.contenders = [name for name in CONTENDERS if args.gpu or name != "inductor"]
    if args.gpu:
        if device() == "cpu":
            raise SystemExit("not run: no GPU here")
        args.dtype = "bf16"
    if args.memory_of:
        shape = (args.rows, args.hidden, args.vocab)
        tensors, before = inputs(*shape, DTYPES[args.dtype]), peak_bytes(device())
        step(loss_of(args.memory_of, *shape), *tensors)
        print(json.dumps({"peak": peak_bytes(device()), "before": before}))
        return
    facts: dict[str, Any] = {
        "circumstances": circumstances(),
        "vocab": args.vocab,
        "dtype": args.dtype,
        "shapes": {},
    }
    rows: list[list[str]] = []
    for n, hidden in GPU_SHAPES if args.gpu else [(args.rows, args.hidden)]:
        found, more = measure(args, n, hidden)
        write_partial(facts, f"{n} x {hidden}", args.out, found)
        rows += more
    first = args.contenders[0]
    header = ["rows x h", "loss", "fwd+bwd s", f"x {first} (range)", "by CPU s", "peak GB"]
    header += ["value", f"d hidden vs {first}", "d weight"]
    bars = {
        shape: {
            name: int(shape.split()[0]) / min(one["wall"])
            for name, one in found.items()
            if "wall" in one
        }
        for shape, found in facts["shapes"].items()
    }
    title = f"Projection and loss over V={args.vocab:,}, {args.dtype}"
    report(title, facts, header, rows, args.out, plot=args.plot, tokens_per_second=bars)


if __name__ == "__main__":
    main()
