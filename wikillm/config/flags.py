"""Parse the arguments of a command line into settings. Two spellings can be mixed:

    train.learning_rate=3e-4  data.path=a.jsonl,b.jsonl  run.dir=null        dotted keys
    --max_steps 5  --max-steps=5  --bf16  --train.max_steps 5                Hugging Face's flags

All mistakes are collected, each with the argument as typed and the nearest correct spelling. Values
are parsed as in a YAML file (`yaml_file`); the schema validates them later.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from wikillm.config.keys import REMOVED, RENAMED, WAS_REMOVED, Key, all_keys
from wikillm.config.origin import Origin, Setting
from wikillm.config.schema_types import NO, YES
from wikillm.config.trainer_names import ALIASES, SWITCHES, advise
from wikillm.config.yaml_file import parse_value
from wikillm.core.errors import Problems, did_you_mean

_COMMAS = ("data.path", "data.mixture", "data.decontaminate", "train.eval_tasks", "alerts.events")
"""Keys that take a comma-separated list."""
_NULL = ("null", "Null", "NULL", "None", "none", "~")


def parse_arguments(words: Sequence[str], problems: Problems) -> list[Setting]:
    """Settings in the order of the words; if a key is given twice, the last value wins.

    Two values of data.path are refused, because a shell expands `data.path={a,b}.jsonl` to two
    arguments.
    """
    settings: list[Setting] = []
    switches: dict[str, tuple[bool, str]] = {}
    for name, text, typed in _pairs(words, problems):
        if name in SWITCHES:
            if text.lower() in YES + NO:
                switches[name] = (text.lower() in YES, typed)
            else:
                problems.add(
                    f"--{name} must be true or false.", got=typed, fix="train.precision=bf16"
                )
            continue
        setting = _setting(name, text, typed, problems)
        if setting is not None:
            settings.append(setting)
    settings.extend(_precision(switches, settings, problems))
    paths = [setting for setting in settings if setting.key == "data.path" and setting.value]
    if len(paths) > 1:
        names = [name for setting in paths for name in setting.value]
        fix = shlex.quote(f"data.path={json.dumps(names, ensure_ascii=False)}")
        typed = " ".join(setting.origin.where for setting in paths)
        problems.add("data.path is given twice.", got=typed, fix=fix)
    return settings


def flag_to_key(name: str) -> str | None:
    """The key for a flag without its dashes: a dotted key, an alias or a leaf of `train`."""
    if name in all_keys():
        return name
    if name in ALIASES or name in RENAMED:
        return ALIASES.get(name) or RENAMED[name]
    return f"train.{name}" if f"train.{name}" in all_keys() else None


def read_text(key: Key, text: str) -> Any:
    """`text` as a YAML file would read it, by the type of its key. Raises ValueError."""
    if key.is_optional and text in _NULL:
        return None
    if key.is_list:
        if text.startswith("[") and (text.endswith("]") or "]" not in text):
            return parse_value(text)  # else it is a glob: [ab]*.jsonl
        return [part for part in text.split(",") if part] if key.name in _COMMAS else [text]
    if key.is_text or key.is_switch or (key.choices and not key.kinds):
        return text
    return parse_value(text)


def _pairs(words: Sequence[str], problems: Problems) -> Iterator[tuple[str, str, str]]:
    """(name, text, as typed) of each argument. A switch without a value is true."""
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        name, equals, text = word.lstrip("-").partition("=")
        if word.startswith("--") and name:
            name = name.replace("-", "_")
            follower = words[index] if index < len(words) else None
            if equals:
                yield name, text, word
            elif _stands_alone(name, follower):
                yield name, "true", word
            elif follower is not None and not follower.startswith("--"):
                index += 1
                yield name, follower, f"{word} {shlex.quote(follower)}"
            elif name in SWITCHES or flag_to_key(name) is not None:
                problems.add(f"{word} needs a value.", got=word, fix=f"{word} VALUE")
            else:
                problems.add(f"There is no flag --{name}.", got=word, fix=advise(name))
        elif equals and not word.startswith("-"):
            if "." in name:
                yield name, text, word
            else:
                fix = f"{key}={text}" if (key := flag_to_key(name)) else advise(name, text)
                problems.add(f"{name} is not a dotted key.", got=word, fix=fix)
        else:
            near = did_you_mean(word.lstrip("-"), all_keys())
            hint = "a value follows a flag or `=`: --max_steps 5, data.path=FILE"
            fix = f"{near}={word}" if near else hint
            if os.path.exists(word):
                fix = f"data.path={shlex.quote(word)}"
            problems.add(f"{word!r} is a value without a key.", got=word, fix=fix)


def _stands_alone(name: str, follower: str | None) -> bool:
    key = flag_to_key(name)
    is_switch = name in SWITCHES or (key is not None and all_keys()[key].is_switch)
    values = (*YES, *NO, *(all_keys()[key].choices if key else ()))
    return is_switch and (follower is None or follower.lower() not in values)


def _setting(name: str, text: str, typed: str, problems: Problems) -> Setting | None:
    key_name = flag_to_key(name)
    if name in REMOVED:
        problems.add(f"The key {name} no longer exists.", got=typed, fix=WAS_REMOVED)
        return None
    if key_name is None:
        kind = "flag --" if typed.startswith("-") else "key "
        problems.add(f"There is no {kind}{name}.", got=typed, fix=advise(name, text))
        return None
    key = all_keys()[key_name]
    if name == "max_steps" and text == "-1":  # Hugging Face's value for "not set"
        text = "null"
    try:
        value = read_text(key, text)
    except ValueError as error:
        fix = shlex.quote(f"{key_name}={json.dumps([text])}") if key.is_list else None
        problems.add(f"{key_name} cannot be read: {error}", got=typed, fix=fix)
        return None
    if text == "" and not (key.is_list and key_name not in _COMMAS):
        fix = f"{key_name}=null unsets a value" if key.is_optional else f"{key_name}=VALUE"
        problems.add(f"{key_name} has no value.", got=typed, fix=fix)
        return None
    if name == "warmup_ratio" and not (isinstance(value, (int, float)) and 0 <= value < 1):
        problems.add(
            "warmup_ratio must be a share of all steps: at least 0 and below 1.",
            got=typed,
            fix="train.warmup_steps=N",
        )
        return None
    return Setting(key_name, value, Origin("command line", typed))


def _precision(
    switches: dict[str, tuple[bool, str]], settings: list[Setting], problems: Problems
) -> Iterator[Setting]:
    """--bf16 and --fp16 as train.precision. If both are false it is fp32, as in Trainer."""
    if not switches:
        return
    typed = " ".join(text for _, text in switches.values())
    wanted = [name for name, (is_on, _) in switches.items() if is_on]
    if len(wanted) == 2:
        problems.add("--bf16 and --fp16 exclude each other.", got=typed, fix="train.precision=bf16")
        return
    value = wanted[0] if wanted else "fp32"
    others = [s for s in settings if s.key == "train.precision" and s.value != value]
    if others:
        got = f"{typed}, {others[-1].origin.where}"
        problems.add("train.precision is given twice.", got=got, fix=f"train.precision={value}")
        return
    yield Setting("train.precision", value, Origin("command line", typed))
