"""Write tokenizer files, and choose a model type, such that plain transformers gives the training's
ids.

transformers 5 opens every folder of model type qwen2 with `Qwen2Tokenizer`, whatever its
tokenizer_class. This class reads only the vocabulary and the merges from tokenizer.json, and splits
text as Qwen2 does. With a tokenizer of another kind, most of the text would be lost. A Qwen2 model
with such a tokenizer is therefore written as Llama (`weights.as_llama`): the computation is equal,
and transformers 4 and 5 open a Llama folder by its tokenizer.json alone (docs/adr/0008).

The files contain nothing that changes ids: no post-processor that adds tokens (training added
none), no truncation, padding or dropout, no tokenizer class with its own splits, and no token that
the vocabulary lacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wikillm.data.tokenizer.chat_template import TEMPLATE_FILE
from wikillm.data.tokenizer.tokenizer import TextTokenizer, load_tokenizer, read_settings_file
from wikillm.data.tokenizer.train import QWEN2_SPLITS

CLASS = "PreTrainedTokenizerFast"  # TokenizersBackend in transformers 5; uses tokenizer.json as is
NAMED = ("bos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KEPT = ("padding_side", "truncation_side")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def model_type_for(architecture: str, tokenizer_json: str) -> str:
    """The model type for config.json: llama for a qwen2 model with a tokenizer of another kind,
    else `architecture`."""
    is_foreign = architecture == "qwen2" and not is_qwen2_kind(json.loads(tokenizer_json))
    return "llama" if is_foreign else architecture


def is_qwen2_kind(tokenizer: Mapping[str, Any]) -> bool:
    """Whether `Qwen2Tokenizer`, with this vocabulary, merges and added tokens, gives equal ids."""
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
        # Qwen2Tokenizer would add this token to a vocabulary that lacks it.
        and "<|endoftext|>" in {*model["vocab"], *(token["content"] for token in added)}
        and not any(map(_flags, added))
    )


def _flags(token: Mapping[str, Any]) -> bool:
    return any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word"))


def tokenizer_files(source: Path, *, max_length: int, template: str = "") -> dict[str, str]:
    """{file name: text} of the tokenizer files for a model folder.

    Args:
        source: folder with tokenizer.json and the other files of the tokenizer.
        max_length: number of positions of the model.
        template: Jinja text of the chat template to write; "" writes no template. A template in
            `source` is ignored.

    Raises DataError if `source` has no usable tokenizer.
    """
    tokenizer = load_tokenizer(source)
    original = (source / "tokenizer.json").read_text(encoding="utf-8")
    content = json.loads(original)
    is_changed = _drop_what_changes_ids(content, tokenizer)
    config = _config(source, content, tokenizer, max_length)
    # transformers reads the template's file since 4.44; older versions and other programs read
    # the key.
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
    """Remove parts of tokenizer.json that training did not apply. Returns whether it changed."""
    # transformers refuses a tokenizer.json without this key; the tokenizers library takes it.
    is_changed = "added_tokens" not in content
    content.setdefault("added_tokens", [])
    # A post-processor adds tokens: [CLS] $A [SEP], <bos> $A.
    if tokenizer.backend.num_special_tokens_to_add(False):
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
    """A new tokenizer_config.json. Most keys of the source's file are dropped, because some change
    ids (add_bos_token, legacy)."""
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
    # transformers 5 adds these tokens again without their flags, so tokens with flags are left out.
    config["additional_special_tokens"] = [
        token for token in dict.fromkeys(others) if token in special and not _flags(special[token])
    ]
    # transformers 4 sets the outermost pre-tokenizer's flag to this value, or to False without it.
    outermost = content.get("pre_tokenizer") or {}
    config["add_prefix_space"] = bool(outermost.get("add_prefix_space", False))
    # tokenizer.json's decoder decodes text without a cleanup; `generate` refuses token_type_ids.
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
