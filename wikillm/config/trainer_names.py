"""Names of settings in other trainers: the Hugging Face flags that are accepted, and advice for all
other names, from the table `trainer_names.yaml`."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping
from importlib import resources

import yaml

from wikillm.config.keys import all_keys, section_names
from wikillm.core.errors import did_you_mean

ALIASES: dict[str, str] = {
    "output_dir": "run.dir",
    "run_name": "run.name",
    "seed": "run.seed",
    "train_file": "data.path",
    "tokenizer_name": "data.tokenizer",
    "preprocessing_num_workers": "data.workers",
    "model_name_or_path": "model.init_from",
    "attn_implementation": "model.attn_implementation",
    "depth": "model.depth",
    "size": "model.size",
    "block_size": "train.sequence_length",
    "max_length": "train.sequence_length",
    "max_seq_length": "train.sequence_length",
    "max_seq_len": "train.sequence_length",
    "model_max_length": "train.sequence_length",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "activation_checkpointing": "train.gradient_checkpointing",
    "lr": "train.learning_rate",
    "warmup_ratio": "train.warmup_steps",
    "deepspeed": "deepspeed.config",
}
"""Hugging Face's flag -> WikiLLM's key with the same meaning."""

SWITCHES = ("bf16", "fp16")
"""Two booleans of Hugging Face that correspond to one key, train.precision."""
_PREFIX = re.compile("^(use|enable|with)[-_]")
NOT_OFFERED = "leave it out: WikiLLM decides this itself"
"""Start of the advice for arguments without a substitute; any more specific advice is preferred."""


@functools.cache
def refused_names(trainer: str) -> Mapping[str, str]:
    """{name: advice}, for the trainer `hugging_face` or `others`."""
    file = resources.files("wikillm.config") / "trainer_names.yaml"
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))[trainer]
    return {name: group["write"] for group in groups for name in group["for"].split()}


def advise(name: str, value: str = "") -> str:
    """The setting to write instead of an unknown key or flag with this value, or where to find
    it."""
    leaf = name.rsplit(".", 1)[-1]
    bare = _PREFIX.sub("", leaf.lower())
    value = shlex.quote(value) if value else ""
    hugging_face = refused_names("hugging_face")
    if leaf in SWITCHES:
        return f"train.precision={leaf}"
    if leaf in ALIASES and name != ALIASES[leaf]:
        return f"{ALIASES[leaf]}={value or '...'}"
    if leaf in hugging_face and not hugging_face[leaf].startswith(NOT_OFFERED):
        return hugging_face[leaf]
    if (other := _advise_other(leaf, value)) is not None:
        return other
    same_leaf = [key for key in all_keys() if key.endswith(f".{leaf}")]
    if len(same_leaf) == 1:
        return f"{same_leaf[0]}={value or '...'}"
    if bare in ALIASES:
        return f"{ALIASES[bare]}={value or '...'}"
    if leaf in hugging_face:
        return hugging_face[leaf]
    return _advise_nearest(name, leaf, value) or "`wikillm train --help-all` lists all keys"


def _advise_nearest(name: str, leaf: str, value: str) -> str | None:
    """The nearest known name. A dotted name is compared with whole keys first; a flag with the last
    parts of keys and with other trainers' names."""
    dotted = (*all_keys(), *section_names())
    if "." in name and (near := did_you_mean(name, dotted)) is not None:
        return f"did you mean {near}?"
    ours = {key.leaf: key.name for key in all_keys().values()} | ALIASES
    near = did_you_mean(leaf, [*ours, *refused_names("others")], cutoff=0.75)
    if near in ours:
        return f"did you mean {ours[near]}?"
    return advise(near, value) if near else None


def _advise_other(name: str, value: str) -> str | None:
    """The advice for a name from `others`; None if unknown. Upper case, `-`, `_` and a leading
    `use_`, `enable_` or `with_` do not matter."""
    advice_for = {name.replace("_", ""): text for name, text in refused_names("others").items()}
    plain = re.sub("[-_]", "", name.lower())
    bare = re.sub("[-_]", "", _PREFIX.sub("", name.lower()))
    advice = advice_for.get(bare) or advice_for.get(plain)
    return advice.replace("{}", value or "N") if advice else None
