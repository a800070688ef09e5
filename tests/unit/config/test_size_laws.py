"""`model.depth` and `model.size`: a layer of values that follow from one number."""

from __future__ import annotations

import pytest

from wikillm.config.load import load
from wikillm.config.resolved import to_yaml
from wikillm.config.size_laws import (
    RATE_BESIDE_MUON,
    adamw_rate,
    batch_tokens,
    depth_of,
    final_norm_init,
    horizon,
    layer_parameters,
)
from wikillm.core.errors import ConfigError
from wikillm.plan.params import count_parameters


@pytest.mark.parametrize("depth", [1, 3, 16, 21, 32, 128])
def test_every_depth_is_a_valid_model_and_its_parameters_are_counted(depth: int) -> None:
    model = load("wiki-zh-120m", [f"model.depth={depth}"]).config.model
    assert model.num_attention_heads * (model.head_dim or 0) == model.hidden_size == 64 * depth
    assert model.num_attention_heads % model.num_key_value_heads == 0
    assert model.num_attention_heads <= 4 * model.num_key_value_heads
    assert model.intermediate_size % 128 == 0
    counted = count_parameters(model, 4096)
    assert counted.matmul - counted.embedding == layer_parameters(depth)


def test_the_laws_at_a_billion_parameters() -> None:
    tokens = 100_000_000_000
    assert adamw_rate(1_000_000_000, tokens) == 1.6e-3
    assert [final_norm_init(width) for width in (32, 64, 512, 3584)] == [1, 1, 0.125, 0.0179]
    assert batch_tokens(tokens, 2048) == 512 * 2048  # 1.11M by the law
    assert horizon(12, 50_000) == 20 * (layer_parameters(12) + 50_000 * 768)


def test_a_size_takes_the_nearest_depth() -> None:
    for depth in (2, 6, 12, 20, 31, 33, 50):
        tables = 1 if depth < 32 else 2
        parameters = layer_parameters(depth) + tables * 4096 * 64 * depth
        assert depth_of(parameters, 4096) == depth
    run = load("demo", ["--size", "5m", "data.tokenizer=train:4096"]).config
    assert run.model.num_hidden_layers == depth_of(5_000_000, 4096)
    assert run.model.label == f"depth {run.model.num_hidden_layers}"


def test_each_value_can_be_overridden_and_adamws_rate_alone_follows_the_horizon() -> None:
    plain = load("demo", ["model.depth=3"])
    assert plain.origins["train.learning_rate"].where == "laws of model.depth=3"
    assert plain.config.train.num_train_epochs is plain.config.train.max_steps is None
    longer = load("demo", ["model.depth=3", "train.max_tokens=1B"]).config.train
    assert longer.max_tokens == 1_000_000_000
    assert longer.learning_rate == RATE_BESIDE_MUON
    assert load("demo", ["model.depth=3"]).config.model.final_norm_init == final_norm_init(192)
    own = load("demo", ["model.depth=3", "train.learning_rate=1e-3", "--max_steps", "7"]).config
    assert (own.train.learning_rate, own.train.max_steps, own.train.max_tokens) == (1e-3, 7, None)
    words = ["model.depth=3", "train.optimizer=adamw", "train.max_tokens=1B"]
    adamw = load("demo", words).config.train
    assert load("demo", words).config.model.final_norm_init == 1
    assert (adamw.optimizer, adamw.max_grad_norm) == ("adamw", 1.0)
    assert adamw.learning_rate == adamw_rate(layer_parameters(3), 1_000_000_000)
    wide = load("demo", ["model.depth=3", "model.hidden_size=256", "model.head_dim=null",
                         "model.num_attention_heads=4"])  # fmt: skip
    assert wide.config.model.hidden_size == 256


def test_a_size_without_a_run_preset_does_not_take_the_default_presets_name() -> None:
    words = ["--size", "5m", "data.tokenizer=train:4096"]
    layers = load(None, words).config.model.num_hidden_layers
    assert load(None, words).config.run.name == f"depth-{layers}"
    assert load("demo", words).config.run.name == "demo"
    assert load(None, [*words, "run.name=mine"]).config.run.name == "mine"


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("demo", ["model.depth=3"]),
        # With Qwen2's 151,936 rows, which the file records too, no depth has 1M parameters.
        (None, ["model.size=1m", "data.tokenizer=train:4000", "train.max_steps=300"]),
    ],
)
def test_the_resolved_file_gives_the_same_run(tmp_path, preset, words) -> None:  # type: ignore[no-untyped-def]
    first = load(preset, [*words, "data.path=a.txt"])
    file = tmp_path / "config.resolved.yaml"
    file.write_text(to_yaml(first), encoding="utf-8")
    assert load(str(file)).config == first.config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.depth=3", "model.size=5m"], "exclude each other"),
        (["model.depth=3", "model.preset=0.5b"], "each set the model's shape"),
        (["model.depth=0"], "greater than or equal to 1"),
        (["model.depth=deep"], "valid integer"),
        (["model.size=many"], "model.size"),
        (["model.size=300", "data.tokenizer=train:4096"], "No depth gives"),
        (["model.size=500b"], "No depth gives"),
        (["model.size=0"], "greater than or equal to 1"),
        (["model.depth=1e999"], "finite"),
        (["train.num_train_epochs=1e308"], "less than or equal to 1000000"),
        (["model.depth=3", "train.max_tokens=0"], "train.max_tokens"),
        (["model.depth=3", "train.sequence_length=-1"], "train.sequence_length"),
    ],
)
def test_contradictions_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("demo", words)
