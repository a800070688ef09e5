"""Evaluating on held-out tokens, beside Hugging Face's `Trainer.evaluate`.

    python benchmarks/evaluation.py --vocab 151936 --repeats 6

Both evaluate the same weights on the same batches, in turns, in this process: `Trainer` with
`prediction_loss_only`, and `held_out_loss` on the same model with the fused loss. Their losses must
agree. Peak memory is of a process for each.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

# The repository instead of this folder, as in kernels.py.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from benchmarks.record import (
    circumstances,
    interleaved,
    paired_ratio,
    peak_bytes,
    report,
    run_in_fresh_process,
)
from wikillm.evals.loss import held_out_loss
from wikillm.models.fused_loss import patch_loss

LENGTH = 512
WAYS = ("stock", "wikillm")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--batch", type=int, default=4, help=f"sequences of {LENGTH} tokens")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--only", choices=WAYS, help="run one of them, for its peak of memory")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    return parser.parse_args()


def model_of(args: argparse.Namespace) -> Any:
    torch.manual_seed(1)
    config = Qwen2Config(
        hidden_size=args.hidden, num_hidden_layers=args.layers, vocab_size=args.vocab,
        intermediate_size=4 * args.hidden, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def ways_of(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Each way as a function that returns its loss."""
    shape = (args.batch * args.batches, LENGTH)
    ids = torch.randint(args.vocab, shape, generator=torch.Generator().manual_seed(2))
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    batches = [
        {"input_ids": ids[at : at + args.batch], "shift_labels": labels[at : at + args.batch]}
        for at in range(0, len(ids), args.batch)
    ]
    batches = [batch | {"labels": batch["shift_labels"]} for batch in batches]
    model = model_of(args)
    stock = Trainer(
        copy.deepcopy(model),
        TrainingArguments(
            output_dir=folder, per_device_eval_batch_size=args.batch, prediction_loss_only=True,
            report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        ),
        eval_dataset=rows,
    )  # fmt: skip
    device = stock.args.device
    patch_loss(model.to(device), rows=args.batch * LENGTH, device_type=device.type)

    def ours() -> float:
        found = held_out_loss(model, batches, bytes_per_token=1.0, device=device)
        assert found is not None, "the evaluation ended early"
        return found.loss

    return {"stock": lambda: stock.evaluate()["eval_loss"], "wikillm": ours}


def main() -> None:
    args = arguments()
    words = [f"--{name}={value}" for name, value in vars(args).items() if isinstance(value, int)]
    # First, while this process is small: a child's peak begins at its parent's size.
    peaks = {
        name: run_in_fresh_process([*words, "--only", name])["peak"]
        for name in (() if args.only else WAYS)
    }
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(args, folder)
        if args.only:
            loss = ways[args.only]()
            print(json.dumps({"loss": loss, "peak": peak_bytes(device_name())}))
            return
        losses = {name: run() for name, run in ways.items()}
        assert abs(losses["stock"] - losses["wikillm"]) < 1e-4 * losses["stock"], losses
        times = interleaved(ways, args.repeats, synchronize)
    ratios = {
        kind: paired_ratio(times["stock"][kind], times["wikillm"][kind]) for kind in ("wall", "cpu")
    }
    facts = {
        "circumstances": circumstances(), "losses": losses, "seconds": times,
        "stock / wikillm": ratios, "peak_bytes": peaks,
    }  # fmt: skip
    rows = [
        [
            name,
            f"{statistics.median(times[name]['wall']):.2f}",
            "1"
            if name == "stock"
            else "{median:.2f} ({least:.2f}-{most:.2f})".format(**ratios["wall"]),
            f"{statistics.median(times[name]['cpu']):.2f}",
            f"{peaks[name] / 1e9:.2f}",
            f"{losses[name]:.6f}",
        ]
        for name in WAYS
    ]
    header = ("way", "s", "x stock (range)", "CPU s", "peak GB", "loss")
    report(f"Evaluation, medians of {args.repeats}", facts, header, rows, args.out)


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
