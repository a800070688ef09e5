"""Every key of the schema is in the table of `resume_keys`, and the refused ones are refused by
name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from wikillm.config.init_from import shape_settings
from wikillm.config.load import load
from wikillm.config.resolved import typed_form
from wikillm.core.errors import CheckpointError
from wikillm.data.filters.settings import plan_filters
from wikillm.data.prepare.dedup import dedup_facts
from wikillm.data.prepare.prepare import plan_store
from wikillm.train.reapply_settings import with_state
from wikillm.train.resume import MUST_MATCH, ResumePoint, check_same_run, short_facts
from wikillm.train.resume_keys import ON_RESUME, REFUSED, changed_settings, recorded_settings

SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 640,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
}
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
FIRST_WEIGHTS = {"model.init_from": "folder"}
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
    "data.format": "the format is among a source's facts",
    "data.mixture": "a value of its own (MUST_MATCH)",
    "data.max_field_lines": "a fact of CSV sources: tests/unit/data",
    "data.convert": "needs OpenCC: tests/unit/data/filters/test_filters.py",
    "data.protected_terms": "likewise",
    "data.drop_list": "its hash is a fact: tests/unit/data/dedup/test_drop_list.py",
}


def test_every_refused_key_is_covered_here() -> None:
    refused = {key for key, role in ON_RESUME.items() if role == REFUSED}
    by_value = {key for key in refused if any(key in setting for setting in MUST_MATCH.values())}
    assert refused == {*by_value, *MODEL, *FIRST_WEIGHTS, *STORE, *FILTERS, *COPIES, *ELSEWHERE}


SAME = dict.fromkeys(MUST_MATCH, 1)


def make_point(tmp_path: Path, **state: Any) -> ResumePoint:
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps(SHAPE))
    return ResumePoint(checkpoint, 3, 24, SAME | state)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return {s.key: s.value for s in shape_settings(str(folder)) if s.value is not None}


def config(shape: dict[str, Any], changes: dict[str, Any]) -> Any:
    both = shape | {"model.preset": "tiny", "data.path": "x.jsonl", "train.max_steps": 8} | changes
    return load(None, [f"{key}={typed_form(value)}" for key, value in both.items()]).config


@pytest.mark.parametrize("key", MODEL)
def test_the_model_is_compared_field_by_field(
    key: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    """With the config.json of the checkpoint, so also for checkpoints of earlier versions."""
    point = make_point(tmp_path)
    check_same_run(point, SAME, allow_change=True, model=config(shape, {}).model)
    changes = {key: MODEL[key]}
    if key == "model.num_attention_heads":
        changes["model.num_key_value_heads"] = 1
    with pytest.raises(CheckpointError) as caught:
        check_same_run(point, SAME, allow_change=True, model=config(shape, changes).model)
    assert re.search(rf"{key}: \S+ then, {typed_form(MODEL[key])} now", str(caught.value))


def test_settings_of_the_first_weights_are_refused(shape: dict[str, Any], tmp_path: Path) -> None:
    then = recorded_settings(config(shape, {}))
    now = then | {"model.init_from": "other"}
    with pytest.raises(CheckpointError, match=r"model\.init_from: null then, other now"):
        check_same_run(make_point(tmp_path, settings=then), SAME, allow_change=True, settings=now)
    # model.init_from may be left out on a resume. A key that no longer exists says nothing.
    earlier = {"model.init_from": "weights", "model.zero_init_outputs": True, "train.z_loss": 0.1}
    started = make_point(tmp_path / "b", settings=then | earlier)
    check_same_run(started, SAME, allow_change=True, settings=then)


@pytest.mark.parametrize("key", STORE | FILTERS)
def test_another_store_is_refused_with_the_key_that_differs(
    key: str, corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "another text", "title": "t"}\n' * 50)
    examples = tmp_path / "evaluation.jsonl"
    examples.write_text(json.dumps({"text": "a question of fourteen words " * 3}) + "\n")
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

    then = short_facts(facts({}))
    now = short_facts(facts({key: value}))
    point = make_point(tmp_path, store="a", store_facts=then)
    with pytest.raises(CheckpointError) as caught:
        check_same_run(point, SAME | {"store": "b", "store_facts": now}, allow_change=True)
    assert f"\n  {key.split('_units')[0].split('_share')[0]}: " in str(caught.value)


def test_a_store_of_older_text_rules_is_named_in_the_fix(tmp_path: Path) -> None:
    point = make_point(tmp_path, store="e9ec70c58d11bd12", store_facts={"data.cleaner": 2})
    now = SAME | {"store": "b", "store_facts": {"data.cleaner": 3}}
    with pytest.raises(CheckpointError) as caught:
        check_same_run(point, now, allow_change=True)
    assert "data.path=null data.store=stores/e9ec70c58d11;" in caught.value.fix


def test_deduplication_settings_are_facts(shape: dict[str, Any]) -> None:
    wanted = [
        dedup_facts(config(shape, changes).data)
        for changes in ({}, {"data.dedup": "minhash"}, COPIES)
    ]
    assert len({json.dumps(facts, sort_keys=True) for facts in wanted}) == 3


@pytest.mark.parametrize("name", MUST_MATCH)
def test_a_value_that_differs_is_refused_by_its_setting(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_same_run(make_point(tmp_path), SAME | {name: 2}, allow_change=False)
    assert f"{name}: 1 then, 2 now   ({MUST_MATCH[name]})" in str(caught.value)
    assert caught.value.exit_code == 6


def test_differences_are_refused_together_and_two_may_be_accepted(tmp_path: Path) -> None:
    point = make_point(tmp_path)
    check_same_run(point, SAME, allow_change=False)
    longer = SAME | {"max_steps": 2}
    with pytest.raises(CheckpointError, match="--allow-change"):
        check_same_run(point, longer, allow_change=False)
    check_same_run(point, longer, allow_change=True)
    with pytest.raises(CheckpointError, match=r"store: 1 then, 2 now") as caught:
        check_same_run(point, longer | {"store": 2, "world_size": 4}, allow_change=True)
    message = str(caught.value)
    assert "world_size: 1 then, 4 now" in message
    assert "max_steps" not in message and "model.init_from" in message
    # Another model cannot take the weights, so they are not offered to it.
    with pytest.raises(CheckpointError, match="run.dir=NEW") as caught:
        check_same_run(point, SAME | {"vocab_size": 2}, allow_change=True)
    assert "model.init_from" not in str(caught.value)


def test_changes_are_logged_as_they_are_typed(shape: dict[str, Any]) -> None:
    then = recorded_settings(config(shape, {}))
    now = recorded_settings(config(shape, {"train.learning_rate": 1e-4, "train.eval_steps": 7}))
    assert changed_settings(then, now) == ["learning_rate 0.0005 -> 0.0001", "eval_steps 500 -> 7"]
    assert changed_settings({}, now) == [], "an earlier version recorded nothing"
    assert changed_settings(then | {"train.gone": 1}, then) == [], "a key that no longer exists"


def test_changes_inside_a_deepspeed_file_are_logged(shape: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"

    def settings(**changes: Any) -> dict[str, Any]:
        zero = {"stage": 2, "overlap_comm": True, "offload_param": {"nvme_path": "/nvme"}}
        file.write_text(json.dumps({"zero_optimization": zero} | changes))
        return recorded_settings(config(shape, {"deepspeed.config": str(file)}))

    then = settings(data_types={"grad_accum_dtype": "fp32"})
    now = settings(zero_optimization={"stage": 3, "overlap_comm": False})
    assert changed_settings(then, now) == [
        "deepspeed data_types.grad_accum_dtype fp32 -> null",
        "deepspeed zero_optimization.overlap_comm true -> false",
    ]
    assert "/" not in json.dumps(then), "a path may identify people"
    earlier = {key: value for key, value in then.items() if key != "deepspeed.json"}
    assert changed_settings(earlier, now) == [], "an earlier version did not record the content"


def test_the_loss_scaler_has_this_starts_settings_and_the_checkpoints_state() -> None:
    def dynamic(scale: float, window: int) -> Any:
        return DynamicLossScaler(
            scale, window, min_scale=1, delayed_shift=2, consecutive_hysteresis=False
        )

    loaded = dynamic(1024.0, 1000)
    loaded.cur_iter = 77
    kept = with_state(dynamic(65536.0, 500), loaded)
    assert (kept.cur_scale, kept.cur_iter, kept.scale_window) == (1024.0, 77, 500)
    # A static scale is a setting, not a state.
    assert with_state(LossScaler(128.0), loaded).cur_scale == 128.0
