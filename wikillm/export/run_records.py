"""Read what an export needs from the run directory: content of the model card, tokenizer, texts.

Any file may be missing (an older run, a moved checkpoint); the card is then shorter. Paths are
cut to file names, because a card is published and a path can name people and machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from wikillm.checkpoints.layout import STATE, step_of
from wikillm.core.errors import CheckpointError, ConfigError, WikiLLMError
from wikillm.core.files import read_object, sha256_file
from wikillm.data.store.store import Store
from wikillm.export.card import UNKNOWN, CardContent
from wikillm.observe import names
from wikillm.observe.sinks import read_metrics, read_records

RESOLVED = "config.resolved.yaml"
SHOWN = ("run.seed", "model.preset", "model.init_from", "deepspeed.config")
"""Keys in the card, besides the keys of the section `train`."""
NOT_SHOWN = (
    *("eval_tasks", "eval_tasks_steps", "eval_tasks_budget"),
    *("logging_steps", "eval_steps", "max_eval_tokens", "save_steps", "save_total_limit"),
    *("keep_every_steps", "keep_best"),
    *("exit_timeout_seconds", "dataloader_num_workers", "max_skipped_steps"),
    *("per_device_eval_batch_size", "max_micro_batch_tokens", "weight_check_steps", "spike_window"),
    *("supervise", "lost_seconds", "stall_seconds", "rendezvous_seconds", "meet_seconds"),
    *("self_check", "max_hours"),
)
"""Keys of `train` that the card leaves out (older runs have meet_seconds)."""
FILTERS = (
    *("convert", "quality", "dedup", "max_text_bytes"),
    *("max_document_bytes", "val_fraction", "packing"),
)
"""Keys of the section `data` that decide which text is kept."""
LEDGER = "ledger.jsonl"
_SOURCES = 20  # maximum number of sources that are listed by name
_SAMPLES = 100  # number of samples of held-out text
_SAMPLE_TOKENS = 60
PLANNED = ("global_batch_tokens", "max_steps", "warmup_steps")
"""Keys of `train` whose values the plan computes."""


def run_of(checkpoint: Path) -> Path | None:
    """The run directory that contains a checkpoint; None if it is not in a run directory."""
    run = checkpoint.resolve().parent.parent
    return run if (run / RESOLVED).is_file() else None


def find_tokenizer(checkpoint: Path) -> Path:
    """The folder of the training's tokenizer. Raises ConfigError if it is not found."""
    found = trained_tokenizer(checkpoint)
    if found is not None:
        return found
    raise ConfigError(
        f"The tokenizer of {checkpoint} was not found.",
        got="no tokenizer.json in " + " or ".join(map(str, _tokenizer_places(checkpoint))),
        fix="--tokenizer FOLDER (STORE/tokenizer of the token store)",
    )


def trained_tokenizer(checkpoint: Path) -> Path | None:
    """The folder of the training's tokenizer, or None if it is not found.

    Raises CheckpointError if the tokenizer was changed since the run recorded its sha256.
    """
    places = _tokenizer_places(checkpoint)
    place = next((place for place in places if (place / "tokenizer.json").is_file()), None)
    run = run_of(checkpoint)
    if place is None or run is None:
        return place
    written = read_object(run / "data.json").get("tokenizer")
    recorded = written.get("sha256") if isinstance(written, dict) else None
    file = place / "tokenizer.json"
    if recorded is not None and sha256_file(file) != recorded:
        raise CheckpointError(
            "The run's tokenizer.json was changed after the training.",
            got=f"{file}: its sha256 differs from the sha256 in {run}/data.json",
            fix=f"restore it from the token store: cp STORE/tokenizer/tokenizer.json {place}/",
        )
    return place


def _tokenizer_places(checkpoint: Path) -> list[Path]:
    run = run_of(checkpoint)
    return [checkpoint, *([run / "tokenizer"] if run else [])]


def held_out_texts(checkpoint: Path) -> list[str]:
    """Samples of the run's held-out text; empty if its token store is missing or was rebuilt."""
    run = run_of(checkpoint)
    data = read_object(run / "data.json") if run is not None else {}
    if not data.get("store"):
        return []
    with suppress(WikiLLMError, OSError):
        store = Store.open(Path(data["store"]))
        if store.manifest.fingerprint != data.get("fingerprint"):
            return []
        tokenizer = store.tokenizer()
        val = store.val
        starts = range(0, val.n_tokens, max(1, val.n_tokens // _SAMPLES))
        return [
            tokenizer.decode(val.read(at, min(at + _SAMPLE_TOKENS, val.n_tokens)).tolist())
            for at in starts
        ]
    return []


def read_card_content(checkpoint: Path) -> CardContent:
    """The card's content as far as the run recorded it up to the checkpoint's step."""
    run = run_of(checkpoint)
    step = step_of(checkpoint)
    if run is None:
        return CardContent(name=checkpoint.name, step=step)
    config = _settings_of(run)
    state = read_object(checkpoint / STATE)
    environment = read_object(run / "environment.json")
    settings = config.get("data") or {}
    return CardContent(
        name=str(config.get("run", {}).get("name") or run.name),
        step=step,
        data=_data(read_object(run / "data.json"), settings),
        training=_training(config, read_object(run / "plan.json"), state),
        metrics=_metrics(run, step),
        provenance=_provenance(run, environment),
        environment=_environment(environment),
        data_licence=str(settings.get("licence") or UNKNOWN),
    )


def _data(data: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if not data:
        return {}
    rows: dict[str, Any] = {}
    sources = data.get("sources", [])
    for source in sources[:_SOURCES]:
        rows[f"source: {Path(source['path']).name}"] = f"sha256 {source['sha256']}"
    if len(sources) > _SOURCES:
        rows["further sources"] = len(sources) - _SOURCES
    for name, split in data.get("splits", {}).items():
        label = {"train": "training", "val": "held-out"}.get(name, name)
        rows[f"{label} documents"] = split["documents"]
        rows[f"{label} tokens"] = split["tokens"]
        rows[f"{label} bytes"] = split["text_bytes"]
    for key in FILTERS:
        value = settings.get(key)
        if value not in (None, "none", [], ()):
            rows[f"data.{key}"] = value
    if settings.get("decontaminate"):
        rows["data.decontaminate"] = [Path(path).name for path in settings["decontaminate"]]
    for drop in (data.get("funnel") or {}).get("dropped", []):
        rows[f"dropped: {drop['reason']}"] = drop["records"]
    if tokenizer := data.get("tokenizer"):
        rows["tokenizer"] = f"{Path(tokenizer['name']).name} ({tokenizer['length']:,})"
    rows["token store"] = data.get("fingerprint", "unknown")
    return rows


def _provenance(run: Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    """The version of WikiLLM that trained the model, and the digest of the ledger."""
    rows: dict[str, Any] = {}
    if version := environment.get("packages", {}).get("wikillm"):
        rows["WikiLLM"] = version
    if (run / LEDGER).is_file():
        rows["ledger"] = f"sha256 {sha256_file(run / LEDGER)}"
    return rows


def _training(
    config: Mapping[str, Any], plan: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key in SHOWN:
        section, name = key.split(".")
        value = config.get(section, {}).get(name)
        if value is not None:
            rows[key] = Path(value).name if name in ("init_from", "config") else value
    computed = {name: plan[name] for name in PLANNED if name in plan}
    if "micro_batch" in plan:  # the micro-batch that `auto` chose
        computed["per_device_train_batch_size"] = plan["micro_batch"]
    computed |= {name: state[name] for name in ("precision", "world_size") if name in state}
    for name, value in {**config.get("train", {}), **computed}.items():
        if value is not None and name not in NOT_SHOWN:
            rows["ranks" if name == "world_size" else f"train.{name}"] = value
    return rows


def _metrics(run: Path, step: int | None) -> dict[str, Any]:
    """The last training loss and the last evaluation up to the checkpoint's step."""

    def last(records: list[dict[str, Any]]) -> dict[str, Any]:
        before = [r for r in records if step is None or int(r.get(names.STEP, 0)) <= step]
        return before[-1] if before else {}

    rows: dict[str, Any] = {}
    trained = last(read_metrics(run / "metrics.jsonl"))
    events = read_records(run / "events.jsonl")
    evaluated = last([r for r in events if r.get(names.KIND) == names.EVAL])
    for record, name, label in (
        (trained, names.TOKENS, "tokens trained on"),
        (trained, names.LOSS, "training loss, nats per token"),
        (evaluated, names.EVAL_LOSS, "held-out loss, nats per token"),
        (evaluated, names.BITS_PER_BYTE, "held-out bits per byte"),
    ):
        if record.get(name) is not None:
            value = record[name]
            shown = f"{value:.6g}" if isinstance(value, float) else f"{value:,}"
            rows[label] = f"{shown} (step {record[names.STEP]:,})"
    return rows


def _environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    rows = {name: version for name, version in environment.get("packages", {}).items() if version}
    if environment.get("python"):
        rows["python"] = environment["python"]
    if environment.get("git"):
        rows["wikillm source"] = environment["git"]
    return rows


def _settings_of(run: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((run / RESOLVED).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
