"""`wikillm generate FOLDER --prompt "..."`: text from an exported folder, a run directory or a checkpoint."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wikillm.cli.arguments import not_negative, positive, share
from wikillm.cli.export import TRUST_HELP

if TYPE_CHECKING:
    from wikillm.generate.load import LoadedModel

HELP = "Complete a text with a trained or exported model."

EPILOG = """
examples:
  wikillm generate exports/wiki-zh-120m-500 --prompt "中国的首都是"
  wikillm generate runs/demo --prompt "The history of" --temperature 0
Without --prompt, or with an empty one, the model begins a text of its own.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "folder", metavar="FOLDER", help="an exported model, a run directory or a checkpoint"
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="the beginning of the text; may be given several times",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=64,
        metavar="N",
        help="write at most N tokens (default 64)",
    )
    parser.add_argument(
        "--temperature",
        type=not_negative,
        default=0.8,
        metavar="T",
        help="0: always the most likely token; higher is more varied (default 0.8)",
    )
    parser.add_argument(
        "--top-p",
        type=share,
        default=0.95,
        metavar="P",
        help="choose among the likeliest tokens that together have probability P (default 0.95)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="the same seed gives the same text (default 0)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default auto)"
    )
    parser.add_argument("--trust-checkpoint", action="store_true", help=TRUST_HELP)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a prompt: prompt, text"
    )


def run(args: argparse.Namespace) -> int:
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers import TextStreamer

    from wikillm.core.errors import ConfigError
    from wikillm.generate.complete import Sampling, complete

    loaded = open_model(Path(args.folder), args.device, trust=args.trust_checkpoint)
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    for prompt in args.prompt or [""]:
        # Text appears as it is written; as JSON it appears when it is whole.
        streamer = (
            None
            if args.json
            else TextStreamer(cast(Any, loaded.tokenizer), skip_special_tokens=True)
        )
        try:
            (text,) = complete(
                loaded.model,
                loaded.tokenizer,
                [prompt],
                eos_id=loaded.eos_id,
                sampling=sampling,
                streamer=streamer,
            )
        except ValueError as error:
            raise ConfigError(
                "The text does not fit the model.", got=str(error), fix="--max-new-tokens N"
            ) from error
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
    return 0


def open_model(folder: Path, device: str, *, trust: bool) -> LoadedModel:
    """Load what `folder` means. Partitions that ZeRO-3 left ungathered are put together in a temporary folder."""
    from wikillm.generate.load import has_weights, is_model_folder, load_folder

    if is_model_folder(folder):
        return load_folder(folder, device=device)
    from wikillm.checkpoints.latest import find_complete
    from wikillm.export.facts import find_tokenizer, read_facts

    checkpoint = find_complete(folder)
    tokenizer = find_tokenizer(checkpoint)
    if has_weights(checkpoint):
        return load_folder(checkpoint, tokenizer_dir=tokenizer, device=device)
    from wikillm.export.folder import export_model

    with tempfile.TemporaryDirectory(prefix="wikillm-") as temporary:
        facts = read_facts(checkpoint)
        target = Path(temporary) / "model"
        done = export_model(
            checkpoint,
            target,
            trust=trust,
            tokenizer_dir=tokenizer,
            facts=facts,
            verified=True,
            prove=False,
        )
        return load_folder(done.folder, device=device)
