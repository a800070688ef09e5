"""A whole training step: WikiLLM against Hugging Face's Trainer and bare PyTorch loops; same model, data, batch.

Each contender is a process of its own that stops before every step until it is given the turn, so steps alternate
and nobody computes beside them: a ratio of neighbouring steps means something on a busy machine too. On a GPU
(`--gpu`, the shapes of the goal table) they run one after another, since they would not fit together.

    python benchmarks/train.py                         # h=128, 3 layers, V=4,096, 8 x 128 tokens, CPU
    python benchmarks/train.py --vocab 32000 --hidden 256
    python benchmarks/train.py --contenders hf hf-compiled wikillm wikillm-compiled --profile
    python benchmarks/train.py --gpu                   # 120M, 0.5B, 1.5B, 3B; says "not run" where there is no GPU

"of GEMM" is the share of the device's measured matrix product (float32 on CPU, bf16 on a GPU) that the model's FLOPs
(plan.flops) make up: 100 % is the wall, what is missing to it is what is left. MFU is the share of the datasheet's peak.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)  # instead of this folder: see kernels.py

from benchmarks.record import circumstances, gemm_flops, paired_ratio, plot_bars, report
from wikillm.config.load import load
from wikillm.plan.flops import flops_per_token, peak_flops

CONTENDERS = {
    "hf": "Hugging Face's Trainer, stock",
    "bare": "PyTorch loop, stock loss",
    "bare-fused": "PyTorch loop, fused loss",
    "wikillm": "WikiLLM (pretrain)",
    "hf-liger": "Hugging Face's Trainer, use_liger_kernel",
    "hf-compiled": "Hugging Face's Trainer, torch_compile",
    "wikillm-compiled": "WikiLLM, train.compile=layers",
    "wikillm-elementwise": "WikiLLM, train.compile=elementwise",
    "wikillm-graphs": "WikiLLM, train.cuda_graphs=on",
    "wikillm-compiled-graphs": "WikiLLM, layers compiled and recorded",
    "wikillm-merged": "WikiLLM, train.merged_projections=on",
    "wikillm-compiled-merged": "WikiLLM, layers compiled and merged",
    "wikillm-fp8": "WikiLLM, train.loss_kernel=fp8",
}
ON_CPU = ("hf", "bare", "bare-fused", "wikillm")  # the others need Triton, or a minute to compile


@dataclass(frozen=True)
class Shape:
    """A model preset or, on CPU, single fields; B sequences of T tokens."""

    name: str
    words: tuple[str, ...]
    batch: int
    length: int


# Micro-batches are estimates of what fits into 80 GB.
GPU_SHAPES = [
    Shape(f"{preset}, T={length}", (f"model.preset={preset}",), batch, length)
    for preset, length, batch in (
        ("120m", 512, 64), ("120m", 2048, 16), ("0.5b", 2048, 8), ("1.5b", 4096, 4), ("3b", 4096, 2),
    )
]  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", action="store_true", help="the goal table's shapes")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=4, help="steps that are not counted")
    parser.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), help="default on CPU: the first four")
    parser.add_argument(
        "--profile", action="store_true", help="where the time goes, by torch's profiler, in the last 2 steps"
    )
    parser.add_argument("--plot", type=Path, help="write tokens/s as bars (SVG); needs matplotlib")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser.parse_args()


class Contender:
    """A process that trains; `step()` lets it do one and returns what that took."""

    def __init__(self, name: str, shape: Shape, folder: Path, steps: int, profiled: int) -> None:
        self.name, self.steps = name, steps
        reader, writer = os.pipe()
        order = {
            "name": name,
            "words": words_of(shape, folder, name),
            "steps": steps,
            "fd": writer,
            "profiled": profiled,
        }
        environ = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(REPO)}
        self._log = open(folder / f"{name}.log", "w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", json.dumps(order)],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, pass_fds=[writer], env=environ, cwd=REPO,
        )  # fmt: skip
        os.close(writer)
        self._reports = os.fdopen(reader, encoding="utf-8")
        self._read()

    def step(self) -> dict[str, Any]:
        if self._process.stdin is None:
            raise RuntimeError("a contender without a pipe")
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._reports.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise ChildProcessError(f"{self.name} ended with {self._process.returncode}:\n{self._log.read()[-1500:]}")
        return dict(json.loads(line))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reports.close()
        self._log.close()


def words_of(shape: Shape, folder: Path, name: str) -> list[str]:
    """The run as WikiLLM's command line says it; the other contenders read the same."""
    switches = {
        "compiled": "train.compile=layers", "elementwise": "train.compile=elementwise",
        "graphs": "train.cuda_graphs=on", "merged": "train.merged_projections=on", "fp8": "train.loss_kernel=fp8",
    }  # fmt: skip
    return [
        *(word for part, word in switches.items() if part in name.split("-") and name.startswith("wikillm")),
        f"data.path={folder / 'text.jsonl'}", f"data.store={folder / 'store'}", "data.tokenizer=train:260",
        "data.min_val_tokens=100", "data.workers=1", *shape.words, f"train.sequence_length={shape.length}",
        f"train.per_device_train_batch_size={shape.batch}", f"train.global_batch_tokens={shape.batch * shape.length}",
        "train.max_steps=100000", "train.warmup_steps=0", "train.lr_scheduler_type=constant",
        "train.learning_rate=1e-3", "train.save_steps=100000", "train.max_eval_tokens=100",
        "observe.swanlab.mode=disabled", "observe.sample_prompts=[]", f"run.dir={folder / name}",
    ]  # fmt: skip


def write_text(path: Path) -> None:
    """Learnable text of 1 MB: products in words. What it says does not matter to a step's time."""
    with open(path, "w", encoding="utf-8") as file:
        for n in range(4000):
            text = " ".join(f"{n} times {k} is {n * k}." for k in range(1, 14))
            file.write(json.dumps({"text": text}) + "\n")


def measure(
    shape: Shape, names: list[str], steps: int, warmup: int, *, together: bool, profiled: int = 0
) -> dict[str, Any]:
    """{contender: wall and CPU seconds of each counted step, losses, peak}; {"error": ...} for one that failed."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_text(folder / "text.jsonl")
        for group in [names] if together else [[one] for one in names]:
            found |= _measure_group(shape, group, steps, warmup, folder, profiled)
    return found


def _measure_group(
    shape: Shape, names: list[str], steps: int, warmup: int, folder: Path, profiled: int
) -> dict[str, Any]:
    """Profiled steps come after the counted ones and count nowhere."""
    found: dict[str, Any] = {}
    total = warmup + steps + profiled
    running: list[Contender] = []
    for name in names:
        try:
            running.append(Contender(name, shape, folder, total, profiled))
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
            found[name]["profile"] = reports[-1].get("profile", [])
    return found


def flops_of(shape: Shape) -> int:
    """Model FLOPs per token of a shape, forward and backward."""
    model = load(None, [*shape.words, "data.path=unused", "train.max_steps=1"]).config.model
    return flops_per_token(model, 151_936 if model.vocab_size == "auto" else model.vocab_size, shape.length)


def rows_of(shape: Shape, found: dict[str, Any], facts: dict[str, Any]) -> list[list[str]]:
    rows, flops, tokens = [], flops_of(shape), shape.batch * shape.length
    for name, result in found.items():
        if "error" in result:
            last = result["error"].strip().splitlines()[-1]
            rows.append([shape.name, CONTENDERS[name], last[:60], *[""] * 8])
            continue
        step = statistics.median(result["wall"])
        result["tokens_per_second"] = tokens / step
        cells = [shape.name, CONTENDERS[name], f"{1e3 * step:.1f}", f"{1e3 * statistics.median(result['cpu']):.1f}"]
        cells.append(f"{tokens / step:,.0f}")
        for other in ("hf", "bare-fused"):
            if other == name or "wall" not in found.get(other, {}):
                cells.append("1" if other == name else "")
                continue
            ratio = {kind: paired_ratio(found[other][kind], result[kind]) for kind in ("wall", "cpu")}
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
            print(f"  {row['share']:6.1%} {row['ms']:10.1f} ms {row['calls']:6} x  {row['operation'][:90]}")


def main() -> None:
    import torch

    args = arguments()
    if args.gpu and not torch.cuda.is_available():
        raise SystemExit("not run: no GPU here")
    names = args.contenders or [name for name in CONTENDERS if args.gpu or name in ON_CPU]
    heads = max(1, args.hidden // 32)
    fields = f"hidden_size={args.hidden} num_hidden_layers={args.layers} num_attention_heads={heads} vocab_size={args.vocab} num_key_value_heads={max(1, heads // 2)} intermediate_size={4 * args.hidden}"  # fmt: skip
    words = ("model.preset=tiny", *(f"model.{field}" for field in fields.split()))
    own = Shape(f"h={args.hidden}, {args.layers} layers, V={args.vocab:,}, {args.batch} x {args.length}", words, args.batch, args.length)  # fmt: skip
    facts: dict[str, Any] = {"circumstances": circumstances(), "steps": args.steps, "shapes": {}}
    facts["gemm_flops"] = gemm_flops()
    facts["peak_flops"] = peak_flops(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else None
    rows: list[list[str]] = []
    started = time.monotonic()
    for shape in GPU_SHAPES if args.gpu else [own]:
        facts["shapes"][shape.name] = measure(
            shape, names, args.steps, args.warmup, together=not args.gpu, profiled=2 if args.profile else 0
        )
        rows += rows_of(shape, facts["shapes"][shape.name], facts)
    header = ["shape", "contender", "ms/step", "CPU ms", "tokens/s", "x HF Trainer", "x fused loop", "MFU", "of GEMM", "peak GB", "last loss"]  # fmt: skip
    report(
        f"Training steps, medians of {args.steps} ({time.monotonic() - started:.0f} s)", facts, header, rows, args.out
    )
    for found in facts["shapes"].values():
        print_profile(found)
    if args.plot:
        bars = {
            shape: {CONTENDERS[name]: r["tokens_per_second"] for name, r in found.items() if "wall" in r}
            for shape, found in facts["shapes"].items()
        }
        plot_bars(bars, "tokens/s", args.plot)


if __name__ == "__main__":
    main()
