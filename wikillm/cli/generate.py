"""`wikillm generate FOLDER --prompt "..."`: text from an exported folder, a run directory or a
checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.checkpoints.latest import find_complete
from wikillm.cli.arguments import (
    add_device,
    add_json,
    add_trust,
    not_negative,
    positive,
    share,
    unicode_text,
)
from wikillm.core.errors import ConfigError

if TYPE_CHECKING:
    from wikillm.generate.load import LoadedModel

EPILOG = """
examples:
  wikillm generate exports/wiki-zh-120m-500 --prompt "中国的首都是"
  wikillm generate runs/demo --prompt "The history of" --temperature 0
Without --prompt, or with an empty prompt, the model starts a new text.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="an exported model, a run directory or a checkpoint")
    help = "the beginning of the text; can be repeated"
    add("--prompt", action="append", type=unicode_text, metavar="TEXT", help=help)
    add_sampling(parser, default_new_tokens=64)
    add_device(parser)
    add_trust(parser)
    add_json(parser, "one JSON object per prompt: prompt, text")


def add_sampling(parser: argparse.ArgumentParser, *, default_new_tokens: int) -> None:
    """Add the sampling options; `default_new_tokens` is the default of --max-new-tokens."""
    add = parser.add_argument
    help = f"write at most N tokens (default {default_new_tokens})"
    add("--max-new-tokens", type=positive, default=default_new_tokens, metavar="N", help=help)
    help = "0 always takes the most likely token; higher values vary more (default 0.8)"
    add("--temperature", type=not_negative, default=0.8, metavar="T", help=help)
    help = (
        "nucleus sampling: sample from the smallest set of tokens with total probability P "
        "(default 0.95)"
    )
    add("--top-p", type=share, default=0.95, metavar="P", help=help)
    help = "random seed; equal seeds give equal text (default 0)"
    add("--seed", type=int, default=0, metavar="S", help=help)


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    say_loading(args.folder)
    from wikillm.generate.complete import Sampling, complete
    from wikillm.generate.stream import TextPieces

    loaded = open_model(Path(args.folder), args.device, trust=args.trust_checkpoint)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    for prompt in args.prompt or [""]:
        streamer = None
        if not args.json:  # text is printed token by token
            print(prompt, end="", flush=True)
            streamer = TextPieces(loaded.tokenizer, partial(print, end="", flush=True))
        try:
            (text,) = complete(
                loaded.model,
                loaded.tokenizer,
                [prompt],
                eos_id=loaded.eos_id,
                end_ids=loaded.end_ids,
                sampling=sampling,
                streamer=streamer,
            )
        except ValueError as error:
            what = "Prompt and new tokens exceed the model's context length."
            fix = "a smaller --max-new-tokens, or a shorter prompt"
            raise ConfigError(what, got=str(error), fix=fix) from error
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        else:
            print()
    return 0


def say_loading(folder: str) -> None:
    """Say on a terminal that a model is loaded, before the imports: both take seconds. Standard
    output stays the model's."""
    if sys.stderr.isatty():
        print(f"loading {folder}", file=sys.stderr, flush=True)


def open_model(folder: Path, device: str, *, trust: bool) -> LoadedModel:
    """Load a model folder, or the newest checkpoint of a run.

    Ungathered ZeRO-3 shards are first merged into a temporary folder.
    """
    from wikillm.generate.load import has_weights, is_model_folder, load_folder

    if is_model_folder(folder):
        return load_folder(folder, device=device)
    from wikillm.export.run_records import find_tokenizer

    checkpoint = find_complete(folder)
    tokenizer = find_tokenizer(checkpoint)
    if has_weights(checkpoint):
        return load_folder(checkpoint, tokenizer_dir=tokenizer, device=device)
    with tempfile.TemporaryDirectory(prefix="wikillm-") as temporary:
        done, _ = export_for_reading(checkpoint, Path(temporary), trust=trust)
        return load_folder(done, device=device)


def export_for_reading(run: Path, folder: Path, *, trust: bool) -> tuple[Path, str]:
    """Export a run or a checkpoint below `folder`, without the proof. Returns (folder, name)."""
    from wikillm.export.folder import export_model
    from wikillm.export.run_records import find_tokenizer, read_card_content

    checkpoint = find_complete(run)
    content = read_card_content(checkpoint)
    exported = export_model(
        checkpoint,
        folder / "model",
        trust=trust,
        tokenizer_dir=find_tokenizer(checkpoint),
        content=content,
        verified=True,
        prove=False,
    )
    return exported.folder, f"{content.name}-{content.step}"
