"""Every shipped preset parses, resolves, and sets only values that differ from the defaults."""

from __future__ import annotations

import pytest

from wikillm.config.keys import all_keys
from wikillm.config.load import load
from wikillm.config.presets import AXES, Axis, load_preset, preset_names
from wikillm.config.size_laws import RATE_BESIDE_MUON, final_norm_init
from wikillm.core.errors import ConfigError

EVERY = [(axis, name) for axis in AXES for name in preset_names(axis)]
SET_BY_DEPTH = (
    *("muon_learning_rate", "max_grad_norm", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "lr_decay_share", "lr_decay_type"),
)
SHAPE = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "vocab_size"),
}


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_a_preset_has_a_description_and_only_keys_of_its_axis(axis: Axis, name: str) -> None:
    preset = load_preset(axis, name)
    assert preset.about.endswith((".", ")."))
    sections = {key.split(".")[0] for key in preset.entries}
    if axis != "runs":
        assert sections == {axis.removesuffix("s")}
    assert (preset.parameters is not None) == (axis == "models")


@pytest.mark.parametrize(("axis", "name"), EVERY)
def test_a_preset_sets_only_values_that_differ_from_the_defaults(axis: Axis, name: str) -> None:
    preset = load_preset(axis, name)
    values = {key: entry.value for key, entry in preset.entries.items() if not entry.is_mapping}
    allowed = {f"model.{key}" for key in SHAPE} if axis == "models" else set()
    restated = {key for key, value in values.items() if value == all_keys()[key].default} - allowed
    assert restated == set()
    assert allowed <= set(values)


@pytest.mark.parametrize("name", preset_names("runs"))
def test_a_run_preset_resolves(name: str) -> None:
    resolved = load(name)
    assert resolved.config.run.name == name
    assert resolved.origins["model.vocab_size"].layer == "preset"


def test_there_is_a_run_for_every_model() -> None:
    """Except for the example of a new architecture in docs/extending.md."""
    models = {load(name).config.model.preset for name in preset_names("runs")}
    assert models | {"llama-120m"} == set(preset_names("models"))


def test_published_preset_names_exist() -> None:
    names = "tiny 120m 350m 0.5b 1.5b 3b 7b 14b 32b 72b 0.6b 1.7b 4b 8b"
    assert set(names.split()) <= set(preset_names("models"))


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="There is no run preset") as refused:
        load_preset("runs", "pretrain-7")
    assert refused.value.fix == "did you mean pretrain-7b?"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("tiny", "tiny is a model: model.preset=tiny"),
        (
            "7b",
            "7b is a model: model.preset=7b, or --config with one of: pretrain-1.7b, pretrain-7b",
        ),
    ],
)
def test_a_model_given_as_a_run_suggests_its_runs(name: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(name)
    assert refused.value.fix == fix


def test_presets_with_muon_follow_the_laws_of_size() -> None:
    """Rates are written out in each file, so that `config show` and a reader find them there."""
    runs = [name for name in preset_names("runs") if name.startswith(("pretrain-", "wiki-zh"))]
    with_muon = {name for name in runs if load(name).config.train.optimizer == "muon"}
    assert {"wiki-zh-120m-fast", "pretrain-350m", "pretrain-8b"} <= with_muon
    assert not {"wiki-zh-120m", "pretrain-14b", "pretrain-32b", "pretrain-72b"} & with_muon
    for name in with_muon:
        model, train = load(name).config.model, load(name).config.train
        assert train.learning_rate == RATE_BESIDE_MUON, name
        assert model.final_norm_init == final_norm_init(model.hidden_size), name
        by_depth = load("demo", ["model.depth=3"]).config.train
        for key in SET_BY_DEPTH:
            assert getattr(train, key) == getattr(by_depth, key), (name, key)
