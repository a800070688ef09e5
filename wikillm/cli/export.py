"""`wikillm export RUN|CHECKPOINT`: a standard Hugging Face folder."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from wikillm.cli.arguments import add_json, add_trust

HELP = "Write a run as a standard Hugging Face folder."

EPILOG = """
RUN is a run directory (its newest complete checkpoint is exported) or one checkpoint:
  wikillm export runs/wiki-zh-120m
  wikillm export runs/wiki-zh-120m/checkpoints/checkpoint-500 --to my-model --dtype bfloat16
The folder loads with plain transformers. Before it is put in place, a process without WikiLLM opens
it with AutoTokenizer and AutoModelForCausalLM: several hundred texts must get the ids of the
training tokenizer, and the logits must equal the trained model's. The folder is complete or absent;
an earlier export at the same place is replaced, anything else is left alone.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN", help="a run directory, or a checkpoint in one")
    parser.add_argument("--to", metavar="DIR", help="folder to write. Default: exports/NAME-STEP")
    dtype = "float32, bfloat16 or float16. Default: that of the training"
    parser.add_argument("--dtype", metavar="TYPE", help=dtype)
    average = "the moving average of the weights (train.ema_decay)"
    parser.add_argument("--ema", action="store_true", help=average)
    tokenizer = "folder with tokenizer.json, for a checkpoint without its run"
    parser.add_argument("--tokenizer", metavar="DIR", help=tokenizer)
    add_trust(parser)
    dry = "show what would be written, and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    add_json(parser, "print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    from wikillm.checkpoints.latest import find_complete
    from wikillm.export.facts import find_tokenizer, held_out_texts, read_facts, trained_tokenizer
    from wikillm.export.target import check_target

    checkpoint = find_complete(Path(args.run))
    facts = read_facts(checkpoint)
    if args.ema:
        weights = "moving average of the run's (train.ema_decay)"
        facts = replace(facts, training={**facts.training, "weights": weights})
    default = f"exports/{facts.name}-{facts.step}{'-ema' if args.ema else ''}"
    target = Path(args.to or default)
    tokenizer = Path(args.tokenizer) if args.tokenizer else find_tokenizer(checkpoint)
    # Refuse an occupied target before anything is read.
    check_target(target)
    plan = {"checkpoint": str(checkpoint), "tokenizer": str(tokenizer), "folder": str(target)}
    if args.dry_run:
        lines = (f"{name:<10} {value}" for name, value in plan.items())
        print(json.dumps(plan) if args.json else "\n".join(lines))
        return 0
    from wikillm.core.units import format_count, format_size
    from wikillm.export.folder import export_model

    if not args.json:
        print(f"reading    {checkpoint}", flush=True)
    done = export_model(
        checkpoint,
        target,
        trust=args.trust_checkpoint,
        dtype=args.dtype,
        tokenizer_dir=tokenizer,
        facts=facts,
        verified=True,
        ema=args.ema,
        trained_with=trained_tokenizer(checkpoint),
        held_out=held_out_texts(checkpoint),
    )
    if args.json:
        names = ("parameters", "tensors", "dtype", "architecture")
        written = {name: getattr(done, name) for name in names} | {"bytes": done.size}
        written["proof"] = asdict(done.proof) if done.proof else None
        print(json.dumps(plan | written))
        return 0
    size = f"{format_count(done.parameters)} parameters, {done.dtype}, {format_size(done.size)}"
    print(f"written    {done.folder}  {done.architecture}, {size}")
    print(f"checked    {done.tensors} tensors read back equal, bit for bit")
    if done.proof is not None:
        print(
            f"proved     transformers {done.proof.transformers}, without WikiLLM: the ids of "
            f"{done.proof.texts} texts are the training tokenizer's, the logits the trained model's"
        )
    print(f'next       wikillm generate {done.folder} --prompt "..."')
    return 0
