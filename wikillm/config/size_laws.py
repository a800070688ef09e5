"""One number for the size of a run: `model.depth=12` sets the shape, batch, horizon and rates.

The values form a layer between the run preset and the user's file, so a user can override each of
them. If the user sets `train.max_tokens`, batch and rates follow from it. With L layers:

    width          64 L; heads of 128 from width 1,024 on, else 64; a quarter as many key heads
    feed-forward   8/3 of the width, rounded up to a multiple of 128
    horizon        D = 20 tokens per parameter in a matrix product (Hoffmann et al., 2203.15556)
    batch          0.58 D^0.571 tokens (Li et al., 2503.04715), as a power of two of sequences
    Muon's rate    constant: its update has the same spectral norm at every width
    AdamW's rate   beside Muon constant, with the last norm's initial weight 64 / width, so that a
                   step changes the logits alike at every width (muP, Yang et al., 2203.03466);
                   without Muon 1.79 N^-0.713 D^0.307, N without the embedding (also Li et al.)
    schedule       2 % of the steps as warm-up, constant, linear to 0 over the last half

docs/measurements/2026-11-28-speedrun.md has the measurements of these laws, and their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wikillm.config.origin import Origin, Setting
from wikillm.config.trained_tokenizer import PREFIX, parse_train
from wikillm.core.errors import ConfigError, Problems
from wikillm.core.units import format_count, parse_count

DEPTH = "model.depth"
SIZE = "model.size"
WIDTH_PER_LAYER = 64
WIDE = 1024
"""Heads are 128 wide from this width on."""
TIED_BELOW = 32
"""Shallower models use the embedding as the output head, as Qwen2.5 does up to 3B."""
FEED_FORWARD = (8, 3)
FEED_FORWARD_MULTIPLE = 128
KEY_HEAD_SHARE = 4
TOKENS_PER_PARAMETER = 20
DEEPEST = 128
MUON_RATE = 0.01
RATE_BESIDE_MUON = 0.062
"""AdamW's rate for what Muon does not train: embedding, head, norms, biases."""
FULL_LOGITS_WIDTH = 64
"""Up to this width, the last norm starts with weights of 1."""
DECAY_SHARE = 0.5
WARMUP_SHARE = 0.02
WEIGHT_DECAY = 0.1
QWEN2_ROWS = 151_936
"""Vocabulary of Qwen2's tokenizer, used while the run's tokenizer is unknown."""


def shape(depth: int) -> dict[str, Any]:
    """The keys of `model` for this number of layers."""
    width = WIDTH_PER_LAYER * depth
    head = 128 if width >= WIDE and width % 128 == 0 else 64
    heads = width // head
    key_heads = next(
        n for n in range(1, heads + 1) if heads % n == 0 and n * KEY_HEAD_SHARE >= heads
    )
    times, over = FEED_FORWARD
    feed_forward = -(-width * times // (over * FEED_FORWARD_MULTIPLE)) * FEED_FORWARD_MULTIPLE
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head,
        "intermediate_size": feed_forward,
        "tie_word_embeddings": depth < TIED_BELOW,
    }


def layer_parameters(depth: int) -> int:
    """Parameters in the layers' matrices."""
    model = shape(depth)
    width = model["hidden_size"]
    heads = model["num_attention_heads"]
    attention = 2 * width * model["head_dim"] * (heads + model["num_key_value_heads"])
    return int(depth * (attention + 3 * width * model["intermediate_size"]))


def horizon(depth: int, rows: int, per_parameter: float = TOKENS_PER_PARAMETER) -> int:
    """Tokens to train on, for an embedding with `rows` rows."""
    return round(per_parameter * (layer_parameters(depth) + rows * WIDTH_PER_LAYER * depth))


def batch_tokens(tokens: int, sequence_length: int) -> int:
    """The global batch in tokens: the law's batch, rounded to a power of two of sequences."""
    wanted = 0.58 * tokens**0.571 / sequence_length
    return int(2 ** max(0, round(math.log2(wanted)))) * sequence_length


def adamw_rate(parameters: int, tokens: int) -> float:
    """Peak rate of AdamW alone, to two digits. `parameters` excludes the embedding."""
    return float(f"{1.79 * parameters**-0.713 * tokens**0.307:.1e}")


def final_norm_init(width: int) -> float:
    """Initial weight of the last norm of a model that Muon trains, to three digits."""
    return float(f"{min(1.0, FULL_LOGITS_WIDTH / width):.2e}")


def depth_of(parameters: int, rows: int) -> int:
    """The depth whose number of parameters is nearest to `parameters`, by ratio."""

    def distance(depth: int) -> float:
        return abs(math.log(_parameters(depth, rows) / parameters))

    return min(range(1, DEEPEST + 1), key=distance)


def _parameters(depth: int, rows: int) -> int:
    """Parameters in matrices, with the embedding and, from `TIED_BELOW` on, the output head."""
    tables = 1 if depth < TIED_BELOW else 2
    return layer_parameters(depth) + tables * rows * WIDTH_PER_LAYER * depth


def _size_error(setting: Setting, depth: int, rows: int) -> tuple[str, str, str] | None:
    """What, got and fix of an error; None if the depth has the size within a factor of 2."""
    wanted = parse_count(setting.value)
    actual = _parameters(depth, rows)
    if wanted / 2 <= actual <= wanted * 2:
        return None
    got = f"{setting.origin.where}; depth {depth} has {actual:,} with {rows:,} rows of vocabulary"
    fix = (
        f"--size {format_count(actual)}, or a tokenizer with fewer ids: data.tokenizer=train:4000; "
    )
    fix += "for the ids of a tokenizer's folder set model.vocab_size"
    return "No depth gives a model of about this size.", got, fix


def size_settings(chosen: Sequence[Setting], problems: Problems) -> list[Setting]:
    """The settings that follow from `model.depth` or `model.size`; none if neither is set.

    Args:
        chosen: the settings of the run preset, the file and the command line, lowest first.
    """
    highest = {setting.key: setting for setting in chosen}
    given = [highest[key] for key in (DEPTH, SIZE) if _value(highest, key) is not None]
    if not given:
        return []
    user = {setting.key: setting for setting in chosen if setting.origin.is_user}
    other = user.get("model.init_from") or user.get("model.preset")
    if other is not None and other.value is not None and other.origin.layer != "default":
        got = f"{given[0].origin.where}, {other.origin.where}"
        what = f"{given[0].key} and {other.key} each set the model's shape."
        problems.add(what, got=got, fix="keep one of them")
        return []
    try:
        rows = _rows(user, highest)
        depth = _depth(given[0], rows)
        if given[0].key == SIZE and (problem := _size_error(given[0], depth, rows)):
            problems.add(*problem)
            return []
        tokens = _horizon(user) or horizon(depth, rows)
        length = int(_value(highest, "train.sequence_length") or 512)
        batch = batch_tokens(tokens, length)
        optimizer = _value(user, "train.optimizer") or "muon"
        model = shape(depth)
        rate = (
            RATE_BESIDE_MUON if optimizer == "muon" else adamw_rate(layer_parameters(depth), tokens)
        )
    except (ValueError, TypeError, ArithmeticError, ConfigError):
        return []  # the schema reports the value
    values = {f"model.{key}": value for key, value in model.items()}
    values |= {
        "train.max_tokens": tokens,
        "train.global_batch_tokens": batch,
        "train.learning_rate": rate,
        "train.weight_decay": WEIGHT_DECAY,
        "train.warmup_steps": WARMUP_SHARE,
        "train.lr_scheduler_type": "warmup_stable_decay",
        "train.lr_decay_share": DECAY_SHARE,
        "train.lr_decay_type": "linear",
        "train.optimizer": optimizer,
    }
    if optimizer == "muon":
        values |= {
            "model.final_norm_init": final_norm_init(model["hidden_size"]),
            "train.muon_learning_rate": MUON_RATE,
            "train.max_grad_norm": 0,
        }
    origin = Origin("preset", f"laws of {given[0].key}={given[0].value}")
    return [Setting(key, value, origin) for key, value in values.items()]


def _value(settings: Mapping[str, Setting], key: str) -> Any:
    return settings[key].value if key in settings else None


def _depth(setting: Setting, rows: int) -> int:
    if setting.key == SIZE:
        return depth_of(parse_count(setting.value), rows)
    depth = int(setting.value)
    if not 1 <= depth <= DEEPEST:
        raise ValueError(depth)
    return depth


def _rows(user: Mapping[str, Setting], settings: Mapping[str, Setting]) -> int:
    """Rows of the embedding, or the best guess before the tokenizer is known. Those of a model
    preset, which a config.resolved.yaml records, do not count."""
    rows = _value(user, "model.vocab_size")
    tokenizer = str(_value(settings, "data.tokenizer") or "")
    if rows not in (None, "auto"):
        return int(rows)
    return parse_train(tokenizer) if tokenizer.startswith(PREFIX) else QWEN2_ROWS


def _horizon(settings: Mapping[str, Setting]) -> int | None:
    tokens = _value(settings, "train.max_tokens")
    return None if tokens is None else parse_count(tokens)
