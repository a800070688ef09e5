"""Tokenizer files and a model type with which plain transformers gives the ids of the training.

transformers 5 opens every folder of model type qwen2 with `Qwen2Tokenizer`, whatever its
tokenizer_class: only the vocabulary and the merges come from tokenizer.json, the splits are
Qwen2's. A tokenizer of another kind would lose most of its text. A Qwen2 model with such a
tokenizer is therefore written as Llama (`weights.as_llama`): the same computation, and a model type
whose folders are opened by tokenizer.json alone, in transformers 4 and 5 (docs/adr/0008).

The files hold what decides ids and nothing that changes them: no template that adds tokens (none
was trained on), no truncation, padding or dropout, no class with splits of its own, and no token
that the vocabulary lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wikillm.data.tokenizer.chat_template import TEMPLATE_FILE
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer, read_settings_file
from wikillm.data.tokenizer.train import QWEN2_SPLITS

CLASS = "PreTrainedTokenizerFast"  # TokenizersBackend in transformers 5: tokenizer.json as it is
NAMED = ("bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KEPT = ("padding_side", "truncation_side")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def model_type_for(architecture: str, tokenizer_json: str) -> str:
    """The model type for config.json: llama for qwen2 with a tokenizer of another kind."""
    is_foreign = architecture == "qwen2" and not is_qwen2_kind(json.loads(tokenizer_json))
    return "llama" if is_foreign else architecture


def is_qwen2_kind(tokenizer: Mapping[str, Any]) -> bool:
    """Whether `Qwen2Tokenizer` with its vocabulary, merges and added tokens is the same."""
    model = tokenizer["model"]
    added = tokenizer.get("added_tokens") or []
    parts = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if model.get("type") != "BPE" or len(parts) != 2:
        return False
    split, byte_level = parts
    not_in_qwen2 = (
        "byte_fallback fuse_unk ignore_merges unk_token dropout "
        "continuing_subword_prefix end_of_word_suffix"
    )
    return (
        (tokenizer.get("normalizer") or {}).get("type") == "NFC"
        and (tokenizer.get("decoder") or {}).get("type") == "ByteLevel"
        and (split.get("type"), split.get("behavior")) == ("Split", "Isolated")
        and split.get("pattern") == {"Regex": QWEN2_SPLITS}
        and not split.get("invert")
        and byte_level.get("type") == "ByteLevel"
        and not byte_level.get("add_prefix_space")
        and not byte_level.get("use_regex", True)
        and not any(model.get(name) for name in not_in_qwen2.split())
        # A default of Qwen2Tokenizer: it would be added to a vocabulary that lacks it.
        and "<|endoftext|>" in {*model["vocab"], *(token["content"] for token in added)}
        and not any(map(_flags, added))
    )


def _flags(token: Mapping[str, Any]) -> bool:
    return any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))


def tokenizer_files(source: Path, *, max_length: int, template: str = "") -> dict[str, str]:
    """Name -> text of the tokenizer files of a model folder.

    Args:
        source: folder with tokenizer.json, and what else belongs to it.
        max_length: tokens that the model has positions for.
        template: Jinja text of the chat template to write, whatever `source` has; "" writes none.

    Raises DataError when `source` has no usable tokenizer.
    """
    tokenizer = load_tokenizer(source)
    original = (source / "tokenizer.json").read_text(encoding="utf-8")
    content = json.loads(original)
    is_changed = _drop_what_changes_ids(content, tokenizer)
    config = _config(source, content, tokenizer, max_length)
    # transformers reads the file since 4.44; the key serves older versions and other programs.
    if template:
        config["chat_template"] = template
    files = {
        "tokenizer.json": json.dumps(content, ensure_ascii=False) if is_changed else original,
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
    }
    if template:
        files[TEMPLATE_FILE] = template
    return files


def _drop_what_changes_ids(content: dict[str, Any], tokenizer: TextTokenizer) -> bool:
    """Remove what was not applied in training; returns whether there was something."""
    is_changed = False
    if tokenizer.backend.num_special_tokens_to_add(False):  # a template: [CLS] $A [SEP], <bos> $A
        content["post_processor"] = None
        is_changed = True
    for part, key in ((content, "truncation"), (content, "padding"), (content["model"], "dropout")):
        if part.get(key) is not None:
            part[key] = None
            is_changed = True
    return is_changed


def _config(
    source: Path, content: dict[str, Any], tokenizer: TextTokenizer, max_length: int
) -> dict[str, Any]:
    """A new tokenizer_config.json: keys of the source may change ids (add_bos_token, legacy)."""
    found = read_settings_file(source / "special_tokens_map.json")
    found |= read_settings_file(source / "tokenizer_config.json")
    special = {
        token["content"]: token
        for token in content.get("added_tokens") or []
        if token.get("special")
    }
    config: dict[str, Any] = {"tokenizer_class": CLASS, "eos_token": tokenizer.eos_token}
    for name in NAMED:
        token = _text_of(found.get(name))
        config[name] = token if token in special else None
    config["pad_token"] = config["pad_token"] or tokenizer.eos_token
    others = [_text_of(token) for key in _LISTS for token in _listed(found.get(key))]
    # transformers 5 adds these again, without their flags.
    config["additional_special_tokens"] = [
        token for token in dict.fromkeys(others) if token in special and not _flags(special[token])
    ]
    # transformers 4 sets the outermost pre-tokenizer's flag to this, or to False where it is
    # absent.
    outermost = content.get("pre_tokenizer") or {}
    config["add_prefix_space"] = bool(outermost.get("add_prefix_space", False))
    # Text is decoded by tokenizer.json's decoder, and `generate` refuses token_type_ids.
    config["clean_up_tokenization_spaces"] = False
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["model_max_length"] = max_length
    config.update({key: found[key] for key in KEPT if found.get(key)})
    return config


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _text_of(token: Any) -> str | None:
    """A special token of tokenizer_config.json: a string, or an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
