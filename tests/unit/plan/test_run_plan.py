"""Batch, horizon and warm-up: examples with numbers, and properties over worlds and sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.load import load
from wikillm.config.presets import preset_names
from wikillm.config.resolved import to_yaml
from wikillm.core.errors import ConfigError
from wikillm.plan.run_plan import Plan, RankGpu, make_plan


def plan(
    *words: str,
    run: str | None = None,
    world: int = 1,
    tokens: int = 10**8,
    ids: int = 151_646,
    gpu: RankGpu | None = None,
) -> Plan:
    return make_plan(
        load(run, words), world_size=world, tokenizer_length=ids, train_tokens=tokens, gpu=gpu
    )


def test_the_plan_of_the_tutorials_run() -> None:
    made = plan(tokens=131_072 * 1000 + 1)
    assert (made.micro_batch, made.accumulation, made.global_batch_sequences) == (32, 8, 256)
    assert (made.max_steps, made.warmup_steps, made.epochs) == (2000, 200, 2.0)
    assert (made.parameters, made.vocab_size, made.notes) == (123_426_304, 151_936, ())
    assert json.loads(json.dumps(made.to_json()))["total_tokens"] == 2000 * 131_072


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_batch_is_equal_on_any_number_of_ranks(world: int) -> None:
    made, alone = plan(world=world), plan()
    assert made.micro_batch * made.accumulation * world == alone.global_batch_sequences
    assert made.global_batch_tokens == alone.global_batch_tokens
    assert made.max_steps == alone.max_steps


def test_a_batch_that_does_not_divide_lists_the_nearest_legal_values() -> None:
    words = [
        "train.global_batch_tokens=500000",
        "--per_device_train_batch_size=8",
        "train.sequence_length=2048",
    ]
    with pytest.raises(ConfigError) as refused:
        plan(*words, world=16)
    assert refused.value.what == (
        "global_batch_tokens=500000 cannot be split over 16 ranks x 8 sequences x 2048 tokens."
    )
    got = refused.value.got or ""
    assert "one micro-step is 262144 tokens; nearest legal values: 262144, 524288" in got
    assert "train.global_batch_tokens=500000" in got
    assert refused.value.fix == "train.global_batch_tokens=524288"


# What each run preset trained with before auto: on one rank, or on the ranks of a sequence, it
# stays that number.
MICRO_ON_ONE_RANK = {
    "demo": 4, "wiki-zh-120m": 32, "wiki-zh-120m-fast": 32, "pretrain-350m": 8,
    "pretrain-0.5b": 8, "pretrain-0.6b": 8,
    "pretrain-1.5b": 4,
    "pretrain-1.7b": 4, "pretrain-3b": 4, "pretrain-4b": 4, "pretrain-7b": 2, "pretrain-8b": 2,
    "pretrain-14b": 1,
    "pretrain-32b": 1, "pretrain-72b": 1, "long-1.7b-32k": 1, "long-7b-128k": 1,
}  # fmt: skip


@pytest.mark.parametrize("run", preset_names("runs"))
def test_auto_keeps_a_presets_micro_batch_on_one_rank(run: str) -> None:
    alone = load(run).config.train.sequence_parallel_size
    assert plan(run=run, world=alone, tokens=10**11).micro_batch == MICRO_ON_ONE_RANK[run]


@given(
    sequences=st.integers(1, 4096),
    world=st.integers(1, 64),
    most=st.integers(1, 40_000),
    length=st.integers(2, 4096),
)
def test_auto_takes_the_largest_divisor_within_the_tokens(
    sequences: int, world: int, most: int, length: int
) -> None:
    words = [
        f"train.global_batch_tokens={sequences * length}",
        f"train.max_micro_batch_tokens={most}",
        f"train.sequence_length={length}",
        "--max_steps=1",
    ]
    if sequences % world:
        with pytest.raises(ConfigError, match="cannot be split over") as refused:
            plan(*words, world=world)
        batch, _ = (refused.value.fix or "").splitlines()
        assert plan(*words, batch, world=world).accumulation
        return
    made, share = plan(*words, world=world), sequences // world
    assert made.micro_batch * made.accumulation == share
    assert made.micro_batch * length <= most or made.micro_batch == 1
    larger = [size for size in range(made.micro_batch + 1, share + 1) if share % size == 0]
    assert all(size * length > most for size in larger)


def test_a_small_gpu_gets_a_smaller_micro_batch_with_a_note() -> None:
    ample, small = (plan(gpu=RankGpu(gib * 2**30, 1, "bf16"), tokens=10**9) for gib in (80, 7))
    assert (ample.micro_batch, ample.notes) == (32, ())
    assert 1 <= small.micro_batch < 32 and 256 % small.micro_batch == 0
    assert f"micro-batch {small.micro_batch} instead of 32" in small.notes[0]
    assert "7 GiB" in small.notes[0]
    assert small.global_batch_tokens == ample.global_batch_tokens
    assert small.max_steps == ample.max_steps
    kept = plan("--per_device_train_batch_size=32", gpu=RankGpu(7 * 2**30, 1, "bf16"), tokens=10**9)
    assert (kept.micro_batch, kept.notes) == (32, ())  # an explicit number is the user's


def test_max_micro_batch_tokens_has_no_effect_beside_a_micro_batch() -> None:
    with pytest.raises(ConfigError, match="max_micro_batch_tokens has no effect") as refused:
        load(None, ["train.max_micro_batch_tokens=4096", "--per_device_train_batch_size=4"])
    assert "train.per_device_train_batch_size=auto" in (refused.value.fix or "")
    train = load("demo", ["--per_device_train_batch_size=2"]).config.train
    assert train.per_device_train_batch_size == 2


@given(
    wanted=st.integers(1, 10**6),
    micro=st.integers(1, 12),
    length=st.integers(2, 300),
    world=st.integers(1, 9),
)
def test_a_batch_is_exact_or_refused_with_a_fix_that_works(
    wanted: int, micro: int, length: int, world: int
) -> None:
    words = [
        f"train.global_batch_tokens={wanted}",
        f"--per_device_train_batch_size={micro}",
        f"train.sequence_length={length}",
    ]
    try:
        made = plan(*words, "--max_steps=1", world=world)
    except ConfigError as refused:
        for line in (refused.fix or "").splitlines():
            repair = line.removeprefix("or ").split(",")[0]
            assert plan(*words, "--max_steps=1", repair, world=world).accumulation
        assert wanted % (micro * length * world)
    else:
        split = made.micro_batch * made.accumulation * world * length
        assert split == wanted == made.global_batch_tokens


def test_many_passes_that_the_user_did_not_choose_are_noted() -> None:
    sized = ["--size", "20m", "data.tokenizer=train:4096"]

    def notes(words: list[str], tokens: int) -> str:
        found = make_plan(
            load(None, words), world_size=1, tokenizer_length=4096, train_tokens=tokens
        )
        return " ".join(found.notes)

    assert "repeated 310 times" in notes(sized, 1_256_193)
    assert "repeated" not in notes(sized, 200_000_000)
    assert "repeated" not in notes([*sized, "train.num_train_epochs=300"], 1_256_193)


def test_horizons_round_up() -> None:
    small = ["train.global_batch_tokens=1024", "--per_device_train_batch_size=1"]
    assert plan(*small, "train.max_tokens=1025").max_steps == 2
    # 10,001 tokens are 10,000 targets, 20 sequences of 512, 2 a step
    assert plan(*small, "train.num_train_epochs=1", tokens=10_001).max_steps == 10
    assert plan(*small, "train.num_train_epochs=1", tokens=10_242).max_steps == 11
    assert plan(*small, "train.num_train_epochs=0.3", tokens=10_001).max_steps == 3
    assert plan(*small, "--max_steps=5", tokens=10_001).epochs == 0.5


def test_a_corpus_below_one_global_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than one global batch of 131072") as refused:
        plan(tokens=100_000)
    assert refused.value.fix == "train.global_batch_tokens=98304, or more text"
    # 2 x 196 sequences, 192 a step
    assert plan("train.global_batch_tokens=98304", tokens=100_000).max_steps == 3


@pytest.mark.parametrize(
    ("words", "warmup", "is_noted"),
    [
        ([], 200, False),
        (["--max_steps", "5"], 0, True),
        (["--max_steps", "1000"], 100, True),
        (["--max_steps", "2000"], 200, False),
        (["--max_steps", "10", "--warmup_steps", "2"], 2, False),
        (["--max_steps", "10", "--warmup_steps", "9"], 9, False),
        (["--max_steps", "10", "--warmup_ratio", "0.25"], 3, False),
        (["--max_steps", "100", "--warmup_ratio", "0.07"], 7, False),
        (["--max_steps", "10", "--warmup_steps", "0"], 0, False),
        (["--max_steps", "10", "train.lr_scheduler_type=constant"], 0, False),
    ],
)
def test_the_warm_up_is_a_share_or_is_shortened(
    words: list[str], warmup: int, is_noted: bool
) -> None:
    made = plan(*words, tokens=131_072 * 1500)
    assert made.warmup_steps == warmup
    assert bool(made.notes) == is_noted


def test_a_warmup_as_long_as_the_run_is_refused_when_the_user_set_it() -> None:
    with pytest.raises(ConfigError, match="takes up the whole run of 10 steps") as refused:
        plan("--max_steps=10", "--warmup_steps=10")
    assert "--warmup_steps=10, --max_steps=10" in (refused.value.got or "")


def test_a_files_warm_up_is_shortened_for_a_horizon_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: wiki-zh-120m\ntrain:\n  warmup_steps: 50\n")
    assert plan("--max_steps=100", run=str(file)).warmup_steps == 10


@pytest.mark.parametrize("words", [["--max_steps=5"], ["--max_steps=20", "--warmup_steps=3"], []])
def test_a_resolved_file_gives_the_same_plan(words: list[str], tmp_path: Path) -> None:
    resolved = load(None, words)
    (tmp_path / "again.yaml").write_text(to_yaml(resolved))
    facts = {"world_size": 2, "tokenizer_length": 8_000, "train_tokens": 10**7}
    assert make_plan(load(str(tmp_path / "again.yaml")), **facts) == make_plan(resolved, **facts)
