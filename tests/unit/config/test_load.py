"""Layers, exclusive keys, problems with their places, and the round trip through
config.resolved.yaml."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.config.load import load
from wikillm.config.presets import preset_names
from wikillm.config.resolved import to_yaml
from wikillm.core.errors import ConfigError


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_own_text_does_not_get_the_licence_of_a_presets_sources() -> None:
    assert load("wiki-zh-120m").config.data.licence == "cc-by-sa-4.0"
    assert load("wiki-zh-120m", ["data.path=own.jsonl"]).config.data.licence is None
    stated = ["data.path=own.jsonl", "data.licence=mit"]
    assert load("wiki-zh-120m", stated).config.data.licence == "mit"


def test_without_arguments_the_run_is_the_tutorials() -> None:
    config = load().config
    train = config.train
    batch = (train.sequence_length, train.global_batch_tokens, train.per_device_train_batch_size)
    assert batch == (512, 32 * 8 * 512, "auto")
    rate = (train.learning_rate, train.lr_scheduler_type, train.warmup_steps)
    assert rate == (5e-4, "cosine", 200)
    assert (train.weight_decay, train.num_train_epochs, train.precision) == (0.1, 2, "auto")
    assert config.data.path[0] == "data/wikipedia-zh-cn-*.json"
    assert config.model.vocab_size == 151_936


def test_a_higher_layer_wins_and_is_the_origin(tmp_path: Path) -> None:
    text = "preset: wiki-zh-120m\ntrain:\n  learning_rate: 1e-3\n  eval_steps: 7\n"
    file = written(tmp_path, text)
    resolved = load(file, ["train.learning_rate=3e-4"], deepspeed="zero2")
    assert resolved.config.train.learning_rate == 3e-4
    for key, origin in {
        "train.learning_rate": "command line: train.learning_rate=3e-4",
        "train.eval_steps": f"file: {file}:4",
        "train.weight_decay": "default",
        "train.num_train_epochs": "preset: presets/runs/wiki-zh-120m.yaml:",
        "model.hidden_size": "preset: presets/models/120m.yaml:",
        "deepspeed.config": "command line: --deepspeed zero2",
    }.items():
        assert str(resolved.origins[key]).startswith(origin)


def test_a_file_without_a_base_gets_defaults(tmp_path: Path) -> None:
    resolved = load(written(tmp_path, "train:\n  max_steps: 3\ndata:\n  path: a.jsonl\n"))
    assert resolved.config.data.path == ("a.jsonl",)
    assert resolved.config.data.preset is None
    assert resolved.config.train.global_batch_tokens is None


def test_a_copy_of_a_shipped_run_preset_loads(tmp_path: Path) -> None:
    text = (resources.files("wikillm") / "presets/runs/demo.yaml").read_text()
    assert load(written(tmp_path, text)).config == load("demo").config


@pytest.mark.parametrize(
    ("words", "width"),
    [
        ([], 1024),
        (["model.preset=0.5b"], 896),
        (["model.preset=0.5b", "model.hidden_size=1024", "model.head_dim=64"], 1024),
    ],
)
def test_the_highest_layer_chooses_the_model_preset(
    words: list[str], width: int, tmp_path: Path
) -> None:
    file = written(tmp_path, "preset: wiki-zh-120m\nmodel:\n  preset: 350m\n")
    assert load(file, words).config.model.hidden_size == width


def test_a_higher_layer_replaces_an_exclusive_key() -> None:
    resolved = load(None, ["--max_steps", "5", "--gradient_accumulation_steps", "4"])
    train = resolved.config.train
    assert (train.max_steps, train.num_train_epochs) == (5, None)
    assert (train.gradient_accumulation_steps, train.global_batch_tokens) == (4, None)
    where = resolved.origins["train.num_train_epochs"].where
    assert "--max_steps 5, which replaces train.num_train_epochs=2" in where


def test_exclusive_keys_in_one_layer_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "train:\n  max_steps: 5\n  num_train_epochs: 2\n")
    for config, words, places in (
        (None, ["--max_steps", "5", "train.max_tokens=1M"], ("--max_steps 5", "max_tokens=1M")),
        (file, [], (f"{file}:2", f"{file}:3")),
        (None, ["--gradient_accumulation_steps", "4", "train.global_batch_tokens=4096"], ("4096",)),
    ):
        with pytest.raises(ConfigError, match="exclude each other") as refused:
            load(config, words)
        assert all(place in str(refused.value) for place in places)


def test_adamw_over_a_preset_with_muon_does_not_take_the_rates_beside_muon(tmp_path: Path) -> None:
    words = ["data.path=a.txt", "train.optimizer=adamw"]
    file = tmp_path / "config.resolved.yaml"
    file.write_text(to_yaml(load("pretrain-1.5b", words[:1])), encoding="utf-8")
    for run in ("pretrain-1.5b", str(file)):
        config = load(run, words).config
        train = config.train
        found = (train.learning_rate, train.max_grad_norm, config.model.final_norm_init)
        assert found == (5e-4, 1.0, 1.0)
        assert load(run, [*words, "train.learning_rate=1e-3"]).config.train.learning_rate == 1e-3
        assert load(run, words[:1]).config.train.learning_rate == 0.062


def test_all_problems_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "trian:\n  max_steps: 5\n  eval_steps: 5\n"
        "train:\n  lr: 3\n  precision: bf61\n  max_steps: true\n"
        "model:\n  hidden_size: 1.5\n  vocab_size: abc\n"
        "run:\n  name: 12\ndata: 7\nreport_to: wandb\n",
    )
    with pytest.raises(ConfigError) as refused:
        load(file, ["--do_train"])
    text = str(refused.value)
    for line, words in (
        (1, "did you mean train?"),
        (5, "train.learning_rate="),
        (6, "train.precision=bf16"),
        (7, "train.max_steps does not take true or false"),
        (9, "model.hidden_size"),
        (10, "model.vocab_size"),
        (12, 'quote it: "12"'),
        (13, "data is a section"),
        (14, "observe.swanlab.mode"),
    ):
        assert f"{file}:{line}" in text and words in text
    assert "--do_train" in text
    assert "10 problems" in text  # the keys of an unknown section are not reported one by one


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["model.hidden_size=500"], "cannot be split over num_attention_heads=8"),
        (["model.num_key_value_heads=3"], "not a multiple of num_key_value_heads=3"),
        (["model.head_dim=33"], "even head_dim"),
        (["train.sequence_length=40000"], "longer than max_position_embeddings=32768"),
        (["train.sequence_parallel_size=3"], "one of: 1, 2, 4, 8"),
        (["train.sequence_parallel_size=4", "train.sequence_length=510"], "sequence_length=512"),
        (["data.val_fraction=1.0"], "data.val_fraction: input should be"),
        (["data.tokenizer=train:5"], "from 259 to 1,000,000"),
        (["data.store=/"], "data.store must name a folder"),
        (["train.warmup_steps=3.5"], "neither a share nor a whole number of steps"),
        (["train.min_lr_ratio=0.2"], "min_lr_ratio has no effect with"),
        (["train.lr_scheduler_type=constant", "--warmup_steps=5"], "has no warm-up"),
        (["train.optimizer=muon"], "Muon does not work with gradient clipping"),
        (["train.muon_momentum=0.9"], "muon_momentum has no effect with optimizer=adamw"),
        (["train.keep_every_steps=700"], "is not a multiple of save_steps=500."),
        (["train.keep_best=1", "train.eval_steps=null"], "keep_best needs eval_steps"),
        (["train.keep_best=2", "train.eval_steps=3", "train.save_steps=4"], "keep_best needs"),
        (["train.num_train_epochs=null"], "length of the run"),
        (["train.gradient_checkpointing=some"], "'selective', 'full_but_attention' or 'full'"),
        (["train.learning_rate=nan"], "train.learning_rate"),
        (["run.name=../x"], "run.name"),
        (["model.preset=350"], "did you mean 350m?"),
        (["data.preset=wiki"], "There is no data preset 'wiki'"),
    ],
)
def test_a_contradiction_between_keys_is_refused(words: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, words)
    assert what in str(refused.value)
    assert words[0] in str(refused.value) or "length of the run" in what


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wiki-zh", "wiki-zh-120m"),
        ("120m", "model.preset=120m"),
        ("absent.yaml", "No such file"),
        ("a/b", "No such file"),
    ],
)
def test_an_unknown_config_is_the_only_problem(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(name)
    assert words in str(refused.value)
    assert "horizon" not in str(refused.value)


@pytest.mark.parametrize("name", preset_names("runs"))
def test_the_resolved_yaml_loads_to_an_equal_configuration(name: str, tmp_path: Path) -> None:
    resolved = load(name, ["run.dir=a #b", "--max_steps", "50"])
    again = load(written(tmp_path, to_yaml(resolved)))
    assert again.config == resolved.config
    assert {key: origin.layer for key, origin in again.origins.items()} == {
        key: origin.layer for key, origin in resolved.origins.items()
    }


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_any_text_survives_the_resolved_yaml(
    tmp_path_factory: pytest.TempPathFactory, text: str, prompts: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    resolved = load("demo")
    observe = resolved.config.observe.model_copy(update={"sample_prompts": tuple(prompts)})
    data = resolved.config.data.model_copy(update={"text_key": text})
    changed = resolved.config.model_copy(update={"observe": observe, "data": data})
    again = load(written(folder, to_yaml(type(resolved)(changed, resolved.origins))))
    assert again.config == changed


def test_a_resolved_run_can_be_changed_again(tmp_path: Path) -> None:
    file = written(tmp_path, to_yaml(load("demo", ["--max_steps", "5"])))
    assert load(file, ["train.num_train_epochs=1"]).config.train.max_steps is None


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [("true", "full"), ("no", "none"), ("1", "full"), ("none", "none"), ("selective", "selective")],
)
def test_checkpointing_accepts_true_and_false(spelling: str, kind: str, tmp_path: Path) -> None:
    file = written(tmp_path, f"train:\n  max_steps: 5\n  gradient_checkpointing: {spelling}\n")
    assert load(file).config.train.gradient_checkpointing == kind
    train = load("demo", [f"train.gradient_checkpointing={spelling}"]).config.train
    assert train.gradient_checkpointing == kind


def test_a_removed_key_that_was_off_is_read_and_one_that_was_on_is_refused(tmp_path: Path) -> None:
    """The configuration of a run of an earlier version names every key."""
    file = tmp_path / "config.resolved.yaml"
    own = to_yaml(load("demo", ["data.path=a.jsonl"]))
    file.write_text(
        own.replace("\ntrain:\n", "\ntrain:\n  cuda_graphs: 'off'\n  batch_ramp_from: null\n")
    )
    assert "cuda_graphs" in file.read_text()
    assert load(str(file), []).config == load("demo", ["data.path=a.jsonl"]).config
    for name, value in (("cuda_graphs", "'on'"), ("batch_ramp_tokens", "50000000")):
        file.write_text(f"train:\n  {name}: {value}\n")
        with pytest.raises(ConfigError, match=f"train.{name} no longer exists"):
            load(str(file), ["data.path=a.jsonl"])
    for word in ("model.zero_init_outputs=true", "train.batch_ramp_from=4096"):
        with pytest.raises(ConfigError, match=f"{word.split('=')[0]} no longer exists"):
            load("demo", [word])


def test_a_renamed_key_is_read_by_its_former_name(tmp_path: Path) -> None:
    """From files and the command line, and from the recorded layers of a run's configuration."""
    file = tmp_path / "config.resolved.yaml"
    words = ["data.path=a.jsonl", "train.rendezvous_seconds=70"]
    old = to_yaml(load("demo", words)).replace("rendezvous_seconds", "meet_seconds")
    assert old.count("meet_seconds") >= 2
    file.write_text(old)
    assert load(str(file), []).config.train.rendezvous_seconds == 70
    assert load(str(file), []).origins["train.rendezvous_seconds"].layer == "command line"
    typed = load("demo", ["data.path=a.jsonl", "--train.meet-seconds", "80"])
    assert typed.config.train.rendezvous_seconds == 80
    file.write_text(old.replace('backend: "auto"', 'backend: "tiktoken"'))
    assert "tiktoken" in file.read_text()
    assert load(str(file), []).config.data.backend == "auto"


def test_a_home_folder_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves `run.dir=~/x` as it is: the value is not at the beginning of a word."""
    monkeypatch.setenv("HOME", "/people/me")
    words = [
        "run.dir=~/runs/x",
        "data.path=~/a.jsonl,b.jsonl",
        "data.store=~/stores/x",
        "data.tokenizer=~/tok",
    ]
    config = load("demo", words).config
    assert (config.run.dir, config.data.store) == ("/people/me/runs/x", "/people/me/stores/x")
    assert config.data.path == ("/people/me/a.jsonl", "b.jsonl")
    assert config.data.tokenizer == "/people/me/tok"
