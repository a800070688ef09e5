"""The fused loss against Hugging Face's inside one model: time, peak memory, equality.

One Qwen2 model, the loss patched in and out between turns, so that weights, batch and body are the
same. Times are interleaved in one process; each memory peak comes from its own process.
Default: the shape of the CPU goal.

    # 8 x 512 tokens, h=256, 4 layers, V=151,936, float32.
    python benchmarks/kernels.py
    # How many rows per chunk.
    python benchmarks/kernels.py --chunk-rows 256 512 1024
    # MLPs in chunks.
    python benchmarks/kernels.py --kernels chunked tiled recomputed --vocab 8192 --batch 1 \\
        --length 8192
    # Checkpointing.
    python benchmarks/kernels.py --kernels chunked selective full_but_attention full \\
        --vocab 8192 --layers 8
    python benchmarks/kernels.py --device cuda --dtype bf16 --hidden 512 --layers 12 --batch 32 \\
        --kernels chunked triton fp8
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

# The repository instead of this folder: transformers looks for a package named `kernels`, and would
# find this file.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

# Before torch: threads that wait for one another sleep, so that CPU seconds count work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.record import (
    circumstances,
    interleaved,
    paired_ratio,
    peak_bytes,
    report,
    run_in_fresh_process,
)
from wikillm.config.schema_types import Checkpointing
from wikillm.models import fused_loss as fused_loss_module
from wikillm.models import tiled_mlp
from wikillm.models.checkpointing import checkpoint_layers
from wikillm.models.compile_elementwise import compile_elementwise, restore_rotation
from wikillm.models.fused_loss import fused_loss
from wikillm.models.patching import mlps_of, patch_forward, remove_patches

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECKPOINTED = ("selective", "full_but_attention", "full")
# What changes the layers; their loss is the chunked one.
LAYERS = ("tiled", "recomputed", "elementwise", *CHECKPOINTED)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, help="of torch on CPU")
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=("chunked", "triton", "fp8", *LAYERS),
        default=["chunked"],
        help="beside stock; with the chunked loss: tiled MLPs, MLPs recomputed in chunks by "
        "torch.utils.checkpoint, compiled norms, rotation and SwiGLU, or a kind of "
        "train.gradient_checkpointing",
    )
    parser.add_argument(
        "--chunk-rows",
        type=int,
        nargs="*",
        default=[],
        help="of the loss, or of tiled MLPs, instead of dispatch's",
    )
    parser.add_argument("--plot", type=Path, help="write tokens/s as bars (SVG); needs matplotlib")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # one variant, in its own process
    return parser.parse_args()


def build(args: argparse.Namespace) -> tuple[Any, dict[str, torch.Tensor]]:
    """Model with seeded weights, and one batch; every target counts."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 256),
        intermediate_size=4 * args.hidden,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = Qwen2ForCausalLM(config).to(args.device, DTYPES[args.dtype])
    ids = torch.randint(0, args.vocab, (args.batch, args.length + 1), device=args.device)
    targets = ids[:, 1:].contiguous()
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": targets, "shift_labels": targets}
    return model, batch | {"num_items_in_batch": torch.tensor(targets.numel(), device=args.device)}


def step(model: Any, batch: dict[str, torch.Tensor], variant: str) -> float | None:
    """Forward and backward of "stock", "KERNEL", or "KERNEL:ROWS". Gradients are new each time."""
    model.zero_grad(set_to_none=True)
    if variant == "stock":
        loss = model(**batch).loss
        loss.backward()
        return float(loss.detach())
    own_rule = fused_loss_module.loss_chunk_rows
    own_tiles = tiled_mlp.mlp_chunk_rows
    kernel, _, rows_of_chunk = variant.partition(":")
    rows_of_batch = batch["labels"].numel()
    if rows_of_chunk:
        rows = int(rows_of_chunk)
        if kernel in LAYERS:
            tiled_mlp.mlp_chunk_rows = lambda *_: rows
        else:
            fused_loss_module.loss_chunk_rows = lambda *_: rows
    try:
        with layers_as(kernel, model, rows_of_batch):
            loss_kernel: Any = "chunked" if kernel in LAYERS else kernel
            with fused_loss(model, loss_kernel, rows=rows_of_batch) as patched:
                loss = patched(**batch).loss
            loss.backward()
    finally:
        fused_loss_module.loss_chunk_rows = own_rule
        tiled_mlp.mlp_chunk_rows = own_tiles
    return float(loss.detach())


@contextmanager
def layers_as(kernel: str, model: Any, rows: int) -> Iterator[None]:
    """The decoder layers that a variant of LAYERS has; stock ones for any other."""
    if kernel == "tiled":
        tiled_mlp.tile_mlp(model, rows=rows, device_type=model.device.type)
    elif kernel == "elementwise":
        compile_elementwise(model.train())
    elif kernel in CHECKPOINTED:
        model.train()
        checkpoint_layers(model, cast(Checkpointing, kernel))
    elif kernel == "recomputed":
        for mlp in mlps_of(model):
            patch_forward(mlp, recomputed_in_chunks)
    try:
        yield
    finally:
        remove_patches(model)
        restore_rotation(model)


def recomputed_in_chunks(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    """The alternative to the tiled MLP: torch's checkpoint around each chunk of the stock MLP."""
    x_NH = x.reshape(-1, x.shape[-1])
    rows = tiled_mlp.mlp_chunk_rows(len(x_NH), mlp.gate_proj.weight.shape[0], x.device.type)
    stock = type(mlp).forward
    chunks = [checkpoint(stock, mlp, x_CH, use_reentrant=False) for x_CH in x_NH.split(rows)]
    return torch.cat(chunks).view(x.shape)


def compare_gradients(
    model: Any, batch: dict[str, torch.Tensor], variants: list[str]
) -> dict[str, dict[str, float]]:
    """Loss of each variant, and the relative distance of its whole gradient from stock's."""
    found: dict[str, dict[str, float]] = {}
    truth: list[torch.Tensor] = []
    for variant in variants:
        loss = step(model, batch, variant)
        gradients = [p.grad for p in model.parameters()]
        if variant == "stock":
            truth = [g.clone() for g in gradients]
        distance = sum(
            float((g - t).double().square().sum()) for g, t in zip(gradients, truth, strict=True)
        )
        norm = sum(float(t.double().square().sum()) for t in truth)
        found[variant] = {"loss": float(loss or 0.0), "gradient_distance": (distance / norm) ** 0.5}
    return found


def memory_words(args: argparse.Namespace, variant: str) -> list[str]:
    words = [
        f"--{key}={getattr(args, key)}" for key in ("hidden", "layers", "vocab", "batch", "length")
    ]
    words += [f"--device={args.device}", f"--dtype={args.dtype}", f"--memory-of={variant}"]
    return words + ([f"--threads={args.threads}"] if args.threads else [])


def main() -> None:
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("not run: no GPU here")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.memory_of:
        model, batch = build(args)
        before = peak_bytes(args.device)
        step(model, batch, args.memory_of)
        print(json.dumps({"peak": peak_bytes(args.device), "before": before}))
        return
    ours = [
        f"{kernel}:{rows}" for kernel in args.kernels for rows in args.chunk_rows
    ] or args.kernels
    variants = ["stock", *ours]
    facts: dict[str, Any] = {
        "circumstances": circumstances(),
        "shape": {k: str(v) for k, v in vars(args).items()},
    }
    memory = {variant: run_in_fresh_process(memory_words(args, variant)) for variant in variants}
    model, batch = build(args)
    equality = compare_gradients(model, batch, variants)  # and the warm-up
    steps: dict[str, Callable[[], Any]] = {v: (lambda v=v: step(model, batch, v)) for v in variants}
    times = interleaved(
        steps, args.repeats, torch.cuda.synchronize if args.device == "cuda" else lambda: None
    )
    rows = []
    for variant in variants:
        ratio = {
            kind: paired_ratio(times["stock"][kind], times[variant][kind])
            for kind in ("wall", "cpu")
        }
        facts[variant] = {
            **equality[variant],
            **memory[variant],
            **times[variant],
            "speedup": ratio,
        }
        rows.append(row_of(variant, facts[variant], memory["stock"]["peak"]))
    header = ["loss", "fwd+bwd s", "CPU s", "x stock (range)", "x stock, CPU s", "peak GB"]
    header += ["of stock", "loss value", "gradient vs stock"]
    tokens = args.batch * args.length
    title = (
        f"Forward + backward: h={args.hidden}, {args.layers} layers, V={args.vocab:,}, "
        f"{args.batch} x {args.length} = {tokens:,} tokens, {args.dtype}"
    )
    bars = {title: {variant: tokens / min(facts[variant]["wall"]) for variant in variants}}
    report(title, facts, header, rows, args.out, plot=args.plot, tokens_per_second=bars)


def row_of(variant: str, found: dict[str, Any], stock_peak: int) -> list[str]:
    wall, cpu = found["speedup"]["wall"], found["speedup"]["cpu"]
    return [
        variant,
        f"{min(found['wall']):.2f}",
        f"{min(found['cpu']):.2f}",
        f"{wall['median']:.2f} ({wall['least']:.2f}-{wall['most']:.2f})",
        f"{cpu['median']:.2f}",
        f"{found['peak'] / 1e9:.2f}",
        f"1/{stock_peak / found['peak']:.1f}",
        f"{found['loss']:.6f}",
        f"{found['gradient_distance']:.1e}",
    ]


if __name__ == "__main__":
    main()
