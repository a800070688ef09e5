"""The command line's two spellings, and an answer for each of Hugging Face's names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wikillm.config.flags import flag_to_key, parse_arguments
from wikillm.config.hf_names import ADVICE, ALIASES, SWITCHES, UNSUPPORTED
from wikillm.config.keys import all_keys
from wikillm.core.errors import ConfigError, Problems


def parsed(*words: str) -> dict[str, Any]:
    problems = Problems(ConfigError)
    settings = parse_arguments(words, problems)
    problems.raise_if_any()
    return {setting.key: setting.value for setting in settings}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["train.learning_rate=3e-4"], "train.learning_rate", 3e-4),
        (["--learning_rate", "1e-3"], "train.learning_rate", 1e-3),
        (["--learning-rate=1e-3"], "train.learning_rate", 1e-3),
        (["--train.learning_rate", "1e-3"], "train.learning_rate", 1e-3),
        (["--max_steps", "5"], "train.max_steps", 5),
        (["--max_steps", "-1"], "train.max_steps", None),
        (["--output_dir", "out"], "run.dir", "out"),
        (["--seed=7"], "run.seed", 7),
        (["--model_name_or_path", "m"], "model.init_from", "m"),
        (["--block_size", "256"], "train.sequence_length", 256),
        (["--max_seq_length", "256"], "train.sequence_length", 256),
        (["--model_max_length", "256"], "train.sequence_length", 256),
        (["--warmup_ratio", "0.03"], "train.warmup_steps", 0.03),
        (["--bf16"], "train.precision", "bf16"),
        (["--bf16", "True"], "train.precision", "bf16"),
        (["--bf16", "false"], "train.precision", "fp32"),
        (["--bf16", "true", "--fp16", "false"], "train.precision", "bf16"),
        (["--gradient_checkpointing"], "train.gradient_checkpointing", "true"),
        (["--gradient_checkpointing", "data.path=a"], "train.gradient_checkpointing", "true"),
        (["--gradient_checkpointing", "selective"], "train.gradient_checkpointing", "selective"),
        (["data.path=a.jsonl,b.jsonl"], "data.path", ["a.jsonl", "b.jsonl"]),
        (['data.path=["a,b.jsonl"]'], "data.path", ["a,b.jsonl"]),
        (["observe.sample_prompts=Hello, world"], "observe.sample_prompts", ["Hello, world"]),
        (["run.dir=null"], "run.dir", None),
        (["run.name=null"], "run.name", "null"),  # not optional: a name like any other
        (["run.name=012"], "run.name", "012"),
        (["data.text_key=no"], "data.text_key", "no"),
        (["train.max_tokens=2.5B"], "train.max_tokens", "2.5B"),
        (["data.tokenizer=train:8000"], "data.tokenizer", "train:8000"),
        (["--max_steps=5", "--max_steps=6"], "train.max_steps", 6),
        (["run.dir=a=b"], "run.dir", "a=b"),
    ],
)
def test_spellings(words: list[str], key: str, value: object) -> None:
    assert parsed(*words)[key] == value


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["--max_stps", "5"], "There is no flag --max_stps.", "did you mean train.max_steps?"),
        (["train.max_stps=5"], "There is no key train.max_stps.", "did you mean train.max_steps?"),
        (["max_steps=5"], "max_steps is not a dotted key.", "train.max_steps=5"),
        (["5"], "'5' belongs to no key.", "--max_steps 5"),
        (["--max_steps"], "--max_steps needs a value.", "--max_steps VALUE"),
        (["--report_to", "none"], "There is no flag --report_to.", "observe.swanlab.mode"),
        (["--do_train"], "There is no flag --do_train.", "leave it out"),
        (["--hidden_size", "64"], "There is no flag --hidden_size.", "model.hidden_size="),
        (["train.seed=1"], "There is no key train.seed.", "run.seed="),
        (["--tf32", "true"], "There is no flag --tf32.", "leave it out"),
        (["--warmup_ratio", "3"], "warmup_ratio is a share", "train.warmup_steps=N"),
        (["--bf16", "--fp16"], "exclude each other", "train.precision=bf16"),
        (["--bf16", "train.precision=fp16"], "given twice", "train.precision=bf16"),
        (["--bf16=maybe"], "true or false", "train.precision=bf16"),
        (["data.path="], "data.path has no value.", "data.path=null"),
        (["data.path=[a"], "data.path cannot be read", None),
        (["-x"], "belongs to no key", None),
    ],
)
def test_refusals(words: list[str], what: str, fix: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(*words)
    assert what in refused.value.what
    assert fix is None or fix in (refused.value.fix or "")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems") as refused:
        parsed("stray", "--max_stps", "5", "--do_train")
    assert all(name in str(refused.value) for name in ("--max_stps", "--do_train", "stray"))


def test_aliases_lead_to_keys() -> None:
    assert set(ALIASES.values()) <= set(all_keys())
    assert not set(ADVICE) & (set(ALIASES) | UNSUPPORTED)


def test_every_training_argument_has_an_answer() -> None:
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    answered = {
        name for name in names if flag_to_key(name) or name in ADVICE or name in SWITCHES or name in UNSUPPORTED
    }
    assert names - answered == set()
    # A name that has a key must not also be called unsupported.
    assert {name for name in UNSUPPORTED if flag_to_key(name)} == set()
