"""The arguments that describe a run, shared by every command that takes a run's configuration.

`add_run_config_arguments` declares `--config`, `--deepspeed` and `--help-all`; all other words are
configuration and reach `resolve_run_config` through `args.rest`. The schema is imported only when
it is used: `wikillm train` handles stop signals before it imports anything slow.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wikillm.core.errors import ConfigError

if TYPE_CHECKING:
    from wikillm.config.resolved import Resolved

_TRAIN_KEYS = (
    "sequence_length global_batch_tokens per_device_train_batch_size max_steps num_train_epochs "
    "max_tokens learning_rate warmup_steps precision eval_steps save_steps"
)
MOST_USED = (
    *("data.path", "data.tokenizer", "model.preset", "model.init_from", "run.dir"),
    *(f"train.{name}" for name in _TRAIN_KEYS.split()),
    "observe.swanlab.mode",
)
"""The keys that `--help` shows; `--help-all` shows all."""

_SETTING = re.compile(r"(--)?[a-z_]+(\.\w+)+=")
_SPELLINGS = """
Values come from defaults < presets < YAML file < command line. On the command line, in any mix:
  data.path=a.jsonl,b.jsonl   train.learning_rate=3e-4   run.dir=null   any key; null unsets a value
  --max_steps 50   --per_device_train_batch_size 4   --bf16             Hugging Face's names
`wikillm presets` lists the names for --config, model.preset and data.preset; `wikillm config show
--origin` with the same arguments shows every value and where it is set.
"""


def add_run_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that describe a run, and list the keys below `--help`."""
    group = parser.add_argument_group("the run")
    config = "a run preset, or a YAML file with sections. Default: wiki-zh-120m"
    group.add_argument("--config", metavar="NAME|FILE", help=config)
    deepspeed = "a DeepSpeed JSON, or the name of a shipped recipe such as zero2"
    group.add_argument("--deepspeed", metavar="FILE|NAME", help=deepspeed)
    group.add_argument("--help-all", action=_HelpAll, nargs=0, help="list all keys, and exit")
    parser.usage = (
        f"{parser.prog} [--config NAME|FILE] [--deepspeed FILE|NAME] [options] "
        "[KEY=VALUE | --KEY VALUE ...]"
    )
    short_help = parser.format_help

    def format_help() -> str:
        listed = "\n".join(_key_lines(MOST_USED))
        title = "the most used keys (--help-all lists all):"
        return f"{short_help()}{_SPELLINGS}\n{title}\n{listed}\n"

    parser.format_help = format_help  # type: ignore[method-assign]


def resolve_run_config(args: argparse.Namespace, more: Sequence[str] = ()) -> Resolved:
    """The configuration that a command line describes, with `more` settings after its own.

    Raises ConfigError with all problems found.
    """
    from wikillm.config.load import load

    for flag in ("config", "deepspeed"):
        if getattr(args, flag) == "":  # an unset variable of a shell does not mean the default
            fix = f"give --{flag} a name, or leave it out"
            raise ConfigError(f"--{flag} is empty.", got=f"--{flag} ''", fix=fix)
    return load(args.config, [*args.rest, *more], args.deepspeed)


def split_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other words, settings) of an option with several values: argparse gives such an option all
    words that follow it, settings included."""
    settings = [word for word in words if _SETTING.match(word)]
    return [word for word in words if word not in settings], settings


class _HelpAll(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from wikillm.config.keys import all_keys

        print(_SPELLINGS.lstrip("\n") + "\n" + "\n".join(_key_lines(tuple(all_keys()))))
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
