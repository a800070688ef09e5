"""Every key of the schema has its place in the table of what a resume does with it, and refused ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wikillm.config.init_from import shape_settings
from wikillm.config.load import load
from wikillm.config.resolved import typed_form
from wikillm.core.errors import CheckpointError
from wikillm.data.filters.settings import plan_filters
from wikillm.data.prepare.dedup import dedup_facts
from wikillm.data.prepare.prepare import plan_store
from wikillm.train.reapply_settings import with_state
from wikillm.train.resume import BEFORE, FACTS, ResumePoint, check_same_run, short_facts
from wikillm.train.resume_keys import ON_RESUME, REFUSED, changed_settings, settings_of, shown

SHAPE = {
    "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 640, "tie_word_embeddings": True, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "initializer_range": 0.02, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
}  # fmt: skip
MODEL = {
    "model.architecture": "qwen3",
    "model.hidden_size": 64,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 2,  # with num_key_value_heads=1 the same number of parameters
    "model.num_key_value_heads": 1,
    "model.head_dim": 16,
    "model.intermediate_size": 128,
    "model.tie_word_embeddings": False,
    "model.rope_theta": 1e4,
    "model.rms_norm_eps": 1e-5,
    "model.initializer_range": 0.01,
}
FIRST_WEIGHTS = {"model.zero_init_outputs": True, "model.init_from": "folder"}
STORE = {
    "data.path": "other.jsonl",
    "data.text_key": "title",
    "data.tokenizer": "train:700",
    "data.shard_bytes": 2**21,
    "data.val_fraction": 0.2,
    "data.max_text_bytes": 10_000,
    "data.max_document_bytes": 2**20,
}
FILTERS = {
    "data.quality": "basic",
    "data.decontaminate": "evaluation.jsonl",
    "data.decontaminate_units": 5,
    "data.decontaminate_share": 0.25,
}
COPIES = {"data.dedup": "minhash", "data.dedup_similarity": 0.9}
ELSEWHERE = {
    "data.format": "the sources' format is among their facts, and two formats of one file are two texts",
    "data.mixture": "a fact of its own (FACTS)",
    "data.max_field_lines": "a fact of CSV sources: tests/unit/data",
    "data.convert": "needs OpenCC: tests/unit/data/filters/test_filters.py",
    "data.protected_terms": "likewise",
    "data.drop_list": "its hash is a fact: tests/unit/data/dedup/test_drop_list.py",
}


def test_every_refused_key_is_covered_here() -> None:
    refused = {key for key, role in ON_RESUME.items() if role == REFUSED}
    by_fact = {key for key in refused if any(key in setting for setting in FACTS.values())}
    assert refused == {*by_fact, *MODEL, *FIRST_WEIGHTS, *STORE, *FILTERS, *COPIES, *ELSEWHERE}


def make_point(tmp_path: Path, **state: Any) -> ResumePoint:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps(SHAPE))
    return ResumePoint(checkpoint, 3, 24, {**dict.fromkeys(FACTS, 1), **state})


def config(changes: dict[str, Any]) -> Any:
    same = {s.key: s.value for s in shape_settings(str(FOLDER)) if s.value is not None}
    both = same | {"model.preset": "tiny", "data.path": "x.jsonl", "train.max_steps": 8} | changes
    return load(None, [f"{key}={typed_form(value)}" for key, value in both.items()]).config


@pytest.fixture(autouse=True)
def _shape(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("shape")
    (FOLDER / "config.json").write_text(json.dumps(SHAPE))


FOLDER = Path()


@pytest.mark.parametrize("key", MODEL)
def test_the_model_is_compared_field_by_field(key: str, tmp_path: Path) -> None:
    """By the config.json that every checkpoint has, so also for those of earlier versions."""
    point, facts = make_point(tmp_path), dict.fromkeys(FACTS, 1)
    check_same_run(point, facts, allow_change=True, config=config({}))
    changes = {key: MODEL[key]}
    if key == "model.num_attention_heads":
        changes["model.num_key_value_heads"] = 1
    with pytest.raises(CheckpointError) as caught:
        check_same_run(point, facts, allow_change=True, config=config(changes))
    assert f"{key}: " in str(caught.value) and f" then, {shown(MODEL[key])} now" in str(
        caught.value
    )
    assert caught.value.exit_code == 6


def test_what_only_the_first_weights_depend_on_is_refused_too(tmp_path: Path) -> None:
    then = settings_of(config({}))
    point = make_point(tmp_path, settings=then)
    with pytest.raises(CheckpointError, match=r"model\.zero_init_outputs: false then, true now"):
        facts = dict.fromkeys(FACTS, 1)
        check_same_run(
            point, facts, allow_change=True, config=config({"model.zero_init_outputs": True})
        )
    started = make_point(tmp_path / "b", settings=then | {"model.init_from": "weights"})
    check_same_run(
        started, facts, allow_change=True, config=config({})
    )  # left out: asks for nothing


@pytest.mark.parametrize("key", STORE | FILTERS)
def test_another_store_is_refused_with_the_key_that_makes_it_another(
    key: str, corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "another text", "title": "t"}\n' * 50)
    examples = tmp_path / "evaluation.jsonl"
    examples.write_text(
        '{"text": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"}\n'
    )
    base = {
        "data.path": str(other),
        "data.store": str(tmp_path / "s" / "store"),
        "data.tokenizer": "train:600",
    }
    if key.startswith("data.decontaminate_"):
        base["data.decontaminate"] = str(examples)
    value = {"data.path": str(corpus), "data.decontaminate": str(examples)}.get(
        key, (STORE | FILTERS)[key]
    )

    def facts(changes: dict[str, Any]) -> dict[str, Any]:
        words = [f"{k}={typed_form(v)}" for k, v in (base | changes).items()]
        cfg = load(None, [*words, "train.max_steps=8"]).config.data
        return {**plan_store(cfg).facts, **plan_filters(cfg).facts()}

    then, now = short_facts(facts({})), short_facts(facts({key: value}))
    point = make_point(tmp_path, store="a", store_facts=then)
    with pytest.raises(CheckpointError) as caught:
        check_same_run(
            point, dict.fromkeys(FACTS, 1) | {"store": "b", "store_facts": now}, allow_change=True
        )
    assert f"\n  {key.split('_units')[0].split('_share')[0]}: " in str(caught.value)


def test_deduplication_is_a_fact_too() -> None:
    wanted = [
        dedup_facts(config(changes).data) for changes in ({}, {"data.dedup": "minhash"}, COPIES)
    ]
    assert len({json.dumps(facts, sort_keys=True) for facts in wanted}) == 3


def test_a_fact_that_differs_is_refused_by_its_setting(tmp_path: Path) -> None:
    point = make_point(tmp_path)
    for name, setting in FACTS.items():
        with pytest.raises(CheckpointError) as caught:
            check_same_run(point, dict.fromkeys(FACTS, 1) | {name: 2}, allow_change=False)
        assert f"{name}: 1 then, 2 now   ({setting})" in str(caught.value)
    assert set(BEFORE) <= set(FACTS)


def test_changes_are_logged_as_they_are_typed() -> None:
    then, now = (
        settings_of(config({})),
        settings_of(config({"train.learning_rate": 1e-4, "train.eval_steps": 7})),
    )
    assert changed_settings(then, now) == ["learning_rate 5e-4 -> 1e-4", "eval_steps 500 -> 7"]
    assert changed_settings({}, now) == [], "an earlier version recorded nothing"
    assert changed_settings(then | {"train.gone": 1}, then) == [], "a key that is no longer there"


@pytest.mark.parametrize(
    ("value", "text"),
    [(5e-4, "5e-4"), (0.00015, "1.5e-4"), (1e-8, "1e-8"), (0.95, "0.95"), (0.02, "0.02"), (0.0, "0"), (3.0, "3"), (None, "null"), (-2e-5, "-2e-5"), (7, "7")],
)  # fmt: skip
def test_numbers_as_one_types_them(value: Any, text: str) -> None:
    assert shown(value) == text
    assert value is None or float(text) == value


def test_the_rules_of_the_loss_scaler_are_this_starts_and_its_state_the_checkpoints() -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

    def dynamic(scale: float, window: int) -> Any:
        return DynamicLossScaler(
            scale, window, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
        )

    loaded, fresh = dynamic(1024.0, 1000), dynamic(65536.0, 500)
    loaded.cur_iter = 77
    kept = with_state(fresh, loaded)
    assert (kept.cur_scale, kept.cur_iter, kept.scale_window) == (1024.0, 77, 500)
    assert with_state(LossScaler(128.0), loaded).cur_scale == 128.0, (
        "static now: the scale is a setting"
    )
