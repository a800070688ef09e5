"""The two spellings of the command line, and advice for each of Hugging Face's names."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from wikillm.config.flags import flag_to_key, parse_arguments
from wikillm.config.keys import all_keys
from wikillm.config.load import load
from wikillm.config.trainer_names import ALIASES, NOT_OFFERED, SWITCHES, refused_names
from wikillm.core.errors import ConfigError, Problems

HUGGING_FACE = refused_names("hugging_face")
OTHERS = refused_names("others")
UNSUPPORTED = {name for name, advice in HUGGING_FACE.items() if advice.startswith(NOT_OFFERED)}


def parsed(*words: str) -> dict[str, Any]:
    problems = Problems(ConfigError)
    settings = parse_arguments(words, problems)
    problems.raise_if_any()
    return {setting.key: setting.value for setting in settings}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--learning_rate", "1e-3"], "train.learning_rate", 1e-3),
        (["--learning-rate=1e-3"], "train.learning_rate", 1e-3),
        (["--train.learning_rate", "1e-3"], "train.learning_rate", 1e-3),
        (["--max_steps", "5"], "train.max_steps", 5),
        (["--max_steps", "-1"], "train.max_steps", None),
        (["--output_dir", "out"], "run.dir", "out"),
        (["--model_max_length", "256"], "train.sequence_length", 256),
        (["--warmup_ratio", "0.03"], "train.warmup_steps", 0.03),
        (["--bf16"], "train.precision", "bf16"),
        (["--bf16", "false"], "train.precision", "fp32"),
        (["--bf16", "true", "--fp16", "false"], "train.precision", "bf16"),
        (["--gradient_checkpointing"], "train.gradient_checkpointing", "true"),
        (["--gradient_checkpointing", "data.path=a"], "train.gradient_checkpointing", "true"),
        (["--gradient_checkpointing", "selective"], "train.gradient_checkpointing", "selective"),
        (["data.path=a.jsonl,b.jsonl"], "data.path", ["a.jsonl", "b.jsonl"]),
        (["data.decontaminate=a.txt,b.csv"], "data.decontaminate", ["a.txt", "b.csv"]),
        (['data.path=["a,b.jsonl"]'], "data.path", ["a,b.jsonl"]),
        (["data.path=[ab]*.jsonl"], "data.path", ["[ab]*.jsonl"]),
        (["observe.sample_prompts=Hello, world"], "observe.sample_prompts", ["Hello, world"]),
        (["run.dir=null"], "run.dir", None),
        (["run.name=null"], "run.name", "null"),  # not optional: a name like any other
        (["data.text_key=no"], "data.text_key", "no"),
        (["train.max_tokens=2.5B"], "train.max_tokens", "2.5B"),
        (["--max_steps=5", "--max_steps=6"], "train.max_steps", 6),
        (["run.dir=a=b"], "run.dir", "a=b"),
    ],
)
def test_each_spelling_gives_its_setting(words: list[str], key: str, value: object) -> None:
    assert parsed(*words)[key] == value


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (["--max_stps", "5"], "There is no flag --max_stps.", "did you mean train.max_steps?"),
        (["train.max_stps=5"], "There is no key train.max_stps.", "did you mean train.max_steps?"),
        (["max_steps=5"], "max_steps is not a dotted key.", "train.max_steps=5"),
        (["5"], "'5' is a value without a key.", "--max_steps 5"),
        ([__file__], "is a value without a key.", f"data.path={__file__}"),
        (["--max_steps"], "--max_steps needs a value.", "--max_steps VALUE"),
        (["--report_to", "none"], "There is no flag --report_to.", "observe.swanlab.mode"),
        (["--do_train"], "There is no flag --do_train.", "leave it out"),
        (["--hidden_size", "64"], "There is no flag --hidden_size.", "model.hidden_size="),
        (["train.seed=1"], "There is no key train.seed.", "run.seed="),
        (["--tf32", "true"], "There is no flag --tf32.", "leave it out"),
        (["--warmup_ratio", "3"], "warmup_ratio must be a share", "train.warmup_steps=N"),
        (["--bf16", "--fp16"], "exclude each other", "train.precision=bf16"),
        (["--bf16", "train.precision=fp16"], "given twice", "train.precision=bf16"),
        (["--bf16=maybe"], "true or false", "train.precision=bf16"),
        (["data.path="], "data.path has no value.", "data.path=null"),
        (["data.path=[a"], "data.path cannot be read", 'data.path=["[a"]'),
        (["data.path=a", "data.path=b"], "data.path is given twice", 'data.path=["a", "b"]'),
        (["-x"], "is a value without a key", None),
    ],
)
def test_a_wrong_argument_is_refused_with_a_fix(
    words: list[str], what: str, fix: str | None
) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(*words)
    assert what in refused.value.what
    assert fix is None or fix in (refused.value.fix or "")


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems") as refused:
        parsed("stray", "--max_stps", "5", "--do_train")
    assert all(name in str(refused.value) for name in ("--max_stps", "--do_train", "stray"))


def test_every_alias_names_a_key() -> None:
    assert set(ALIASES.values()) <= set(all_keys())
    assert not set(HUGGING_FACE) & set(ALIASES)


def test_every_training_argument_has_an_answer() -> None:
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    answered = {
        name for name in names if flag_to_key(name) or name in HUGGING_FACE or name in SWITCHES
    }
    assert names - answered == set()
    # A name that has a key must not also be called unsupported.
    assert {name for name in UNSUPPORTED if flag_to_key(name)} == set()


# Habits of other trainers, near misses of our own names, and the key that is meant.
NEIGHBOURS = {
    "--bach_size 8": "train.per_device_train_batch_size=8",
    "--micro-batch-size 8": "train.per_device_train_batch_size=8",
    "--global_batch_size 256": "train.global_batch_tokens=N, in tokens: 256 sequences",
    "--total_batch_size 524288": "train.global_batch_tokens=524288",
    "--epoch=2": "train.num_train_epochs=2",
    "--max_iters 100": "train.max_steps=100",
    "--max_step 100": "train.max_steps",
    "--use_flash_attn true": "model.attn_implementation=flash_attention_2",
    "--flash-attn fa2": "model.attn_implementation=flash_attention_2",
    "--cutoff_len 1024": "train.sequence_length=1024",
    "--learning_rat 1e-3": "train.learning_rate",
    "--min_lr 1e-5": "train.min_lr_ratio",
    "--grad_accum_steps 4": "train.gradient_accumulation_steps=4",
    "--bf16_full_eval": "train.precision=bf16",
    "--mixed_precision bf16": "train.precision",
    "--deepspeed_config ds.json": "--deepspeed ds.json",
    "--out_dir 'my runs'": "run.dir='my runs'",
    "--dataset a": "data.path=a",
    "--n_layers 4": "model.num_hidden_layers=4",
    "--use_wandb": "SwanLab is the only tracker",
    "--report_to=none": "observe.swanlab.mode=offline|online|local|disabled",
    "--report_to": "SwanLab is the only tracker",
    "--from_resume 1": "--resume auto",
    "--world_size 2": "torchrun --nproc_per_node N",
    "--lora_rank 8": "it has no fine-tuning",
    "--bias false": "model.architecture",
    "--norm-epsilon 1e-5": "model.rms_norm_eps=1e-5",
    "--lr-warmup-samples 100": "train.warmup_steps=N, in steps",
    "--tensor-model-parallel-size 2": "--deepspeed zero3 splits the model",
    "--context-parallel-size 2": "train.sequence_parallel_size=2",
    "--enable_activation_checkpointing true": "train.gradient_checkpointing=true",
    "--packing true": "data.packing=best_fit",
    "--text_column body": "data.text_key=body",
    "--hf_token hf_x": "never put a token on a command line",
    "--bf 16": "--help-all",  # similar to other names, but not the same word
}


@pytest.mark.parametrize("typed", NEIGHBOURS)
def test_the_error_for_another_trainers_name_gives_the_key(typed: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, shlex.split(typed))
    assert NEIGHBOURS[typed] in (refused.value.fix or ""), refused.value


def test_refused_names_are_no_keys_and_advised_keys_exist() -> None:
    for name, advice in OTHERS.items():
        assert flag_to_key(name) is None and name not in HUGGING_FACE, name
        for key in re.findall(r"\b((?:run|data|model|train|observe)\.[\w.]+)=", advice):
            assert key in all_keys(), (name, key)


def test_a_yaml_file_gets_the_same_advice(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train:\n  batch_size: 8\n  epochs: 2\nreport_to: wandb\n")
    with pytest.raises(ConfigError) as refused:
        load(str(tmp_path / "run.yaml"))
    said = str(refused.value)
    for part in (
        "train.per_device_train_batch_size=8",
        "train.num_train_epochs=2",
        "SwanLab is the only tracker",
    ):
        assert part in said
