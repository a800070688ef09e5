"""The arguments that describe a run, shared by every command that takes one.

`add_run_config_arguments` declares `--config`, `--deepspeed` and `--help-all`; all other words are configuration
and reach `resolve_run_config` through `args.rest`. The lists of keys under `--help` come from the schema, which
is imported only when somebody asks for them.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wikillm.config.load import Resolved

MOST_USED = (
    "data.path",
    "data.tokenizer",
    "model.preset",
    "model.init_from",
    "run.dir",
    "train.sequence_length",
    "train.global_batch_tokens",
    "train.per_device_train_batch_size",
    "train.max_steps",
    "train.num_train_epochs",
    "train.max_tokens",
    "train.learning_rate",
    "train.warmup_steps",
    "train.precision",
    "train.eval_steps",
    "train.save_steps",
    "observe.swanlab.mode",
)
"""What `--help` shows of the keys; `--help-all` shows all."""

_SPELLINGS = """
Values come from defaults < presets < YAML file < command line. On the command line, freely mixed:
  data.path=a.jsonl,b.jsonl   train.learning_rate=3e-4   run.dir=null     any key below; null takes a value back
  --max_steps 50   --per_device_train_batch_size 4   --bf16               Hugging Face's names for the same
`wikillm presets` lists what --config, model.preset and data.preset may name; `wikillm config show --origin` with
the same words shows every value and where it comes from.
"""


def add_run_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what describes a run, and list the keys below `--help`."""
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="a run preset, or a YAML file with sections. Default: wiki-zh-120m",
    )
    group.add_argument(
        "--deepspeed", metavar="FILE|NAME", help="a DeepSpeed JSON, or a shipped one such as zero2"
    )
    group.add_argument(
        "--help-all", action=_HelpAll, nargs=0, help="list all keys of a configuration, and exit"
    )
    parser.usage = f"{parser.prog} [--config NAME|FILE] [--deepspeed FILE|NAME] [options] [KEY=VALUE | --KEY VALUE ...]"
    short_help = parser.format_help

    def format_help() -> str:
        listed = "\n".join(_key_lines(MOST_USED))
        return f"{short_help()}{_SPELLINGS}\nthe keys most often set (--help-all lists all):\n{listed}\n"

    parser.format_help = format_help  # type: ignore[method-assign]


def resolve_run_config(args: argparse.Namespace) -> Resolved:
    """The configuration that a command line describes. Raises ConfigError with everything that is wrong."""
    from wikillm.config.load import load
    from wikillm.core.errors import ConfigError

    for flag in ("config", "deepspeed"):
        if getattr(args, flag) == "":  # an empty variable of a shell: not the default run
            raise ConfigError(
                f"--{flag} is empty.", got=f"--{flag} ''", fix=f"name one, or leave --{flag} out"
            )
    return load(args.config, args.rest, args.deepspeed)


def all_keys_help() -> str:
    """Every key, its default and its sentence."""
    from wikillm.config.keys import all_keys

    return "\n".join(_key_lines(tuple(all_keys())))


class _HelpAll(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(_SPELLINGS.lstrip("\n") + "\n" + all_keys_help())
        parser.exit()


def _key_lines(names: Sequence[str]) -> list[str]:
    from wikillm.config.keys import all_keys
    from wikillm.config.resolved import typed_form

    lines = []
    for name in names:
        key = all_keys()[name]
        default = "" if key.default in (None, ()) else f"={typed_form(key.default)}"
        doc = key.doc if not key.choices or key.kinds else f"{' | '.join(key.choices)}. {key.doc}"
        lines.append(f"  {name}{default}")
        lines += textwrap.wrap(doc, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines
