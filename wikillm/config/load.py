"""Presets, file and command line -> one validated `RunConfig`, and the origin of every value.

    defaults < model and data preset < run preset < laws of model.depth, or shape of model.init_from
             < file < command line

`--config` names a run preset or a YAML file; a file may name a run preset as its base (`preset:
NAME`). All problems are collected and raised as one ConfigError, each with its place. Some keys
exclude each other, such as the three keys of the horizon: the result sets at most one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from wikillm.config.checks import GROUPS, check, check_init_from
from wikillm.config.flags import parse_arguments
from wikillm.config.init_from import shape_settings
from wikillm.config.keys import REMOVED, RENAMED, WAS_REMOVED, all_keys, nested, section_names
from wikillm.config.origin import DEFAULT, LAYERS, Layer, Origin, Setting, merge
from wikillm.config.presets import Axis, load_preset, preset_names
from wikillm.config.resolved import Resolved
from wikillm.config.schema import RunConfig
from wikillm.config.size_laws import size_settings
from wikillm.config.trainer_names import advise
from wikillm.config.yaml_file import Entry, read_yaml
from wikillm.core.errors import ConfigError, Problems, did_you_mean

DEFAULT_RUN = "wiki-zh-120m"


def load(
    config: str | None = None, overrides: Sequence[str] = (), deepspeed: str | None = None
) -> Resolved:
    """Resolve a run.

    Args:
        config: name of a run preset or path of a YAML file; None for `wiki-zh-120m`, the
            tutorial's run.
        overrides: arguments of a command line; see `flags`.
        deepspeed: the value of `--deepspeed`; sets `deepspeed.config`.

    Raises ConfigError with every problem found.
    """
    problems = Problems(ConfigError)
    # Read the highest layer first: it may name the presets of lower layers.
    typed = parse_arguments(overrides, problems)
    if deepspeed is not None:
        typed.append(
            Setting(
                "deepspeed.config", deepspeed, Origin("command line", f"--deepspeed {deepspeed}")
            )
        )
    run, file, is_read = _read_config(config or DEFAULT_RUN, problems)
    chosen = [*run, *file, *typed]
    if _is_muons_preset_with_adamw(chosen):
        run = _without_muons_values(run)
        file = _without_muons_values(file)
        chosen = [*run, *file, *typed]
    model_preset = _named_preset("models", "model.preset", chosen, problems)
    data_preset = _named_preset("data", "data.preset", chosen, problems)
    data_preset = _without_licence_of_other_text(data_preset, chosen)
    laws = size_settings(chosen, problems)
    if laws and config is None:
        # The default preset's run name contains 120m, which would be wrong for this model.
        depth = next(law for law in laws if law.key == "model.num_hidden_layers")
        laws.append(Setting("run.name", f"depth-{depth.value}", depth.origin))
    shape = _shape_of_init_from(chosen, problems)
    # Lowest layer first. Rules across keys are checked only if every file could be read; otherwise
    # they would report keys that the missing file sets.
    merged = merge([model_preset, data_preset, run, laws, shape, file, typed], GROUPS, problems)
    resolved = _validate(merged, problems)
    if resolved is not None and is_read:
        check(resolved.config, resolved.origins, problems)
        check_init_from(resolved.config, shape, resolved.origins, problems)
    problems.raise_if_any()
    assert resolved is not None, "_validate adds a problem where it returns None"
    return resolved


def _is_muons_preset_with_adamw(chosen: Sequence[Setting]) -> bool:
    """Whether a preset takes Muon and the user another optimizer."""
    optimizers = [setting for setting in chosen if setting.key == "train.optimizer"]
    of_preset = [one.value for one in optimizers if one.origin.layer == "preset"]
    return "muon" in of_preset and optimizers[-1].value != "muon"


def _without_muons_values(settings: Sequence[Setting]) -> list[Setting]:
    """Drop a preset's values that are meant for training beside Muon only."""
    keys = ("train.learning_rate", "train.max_grad_norm", "model.final_norm_init")
    return [one for one in settings if one.key not in keys or one.origin.layer != "preset"]


def _without_licence_of_other_text(
    preset: list[Setting], chosen: Sequence[Setting]
) -> list[Setting]:
    """Drop the licence of a data preset if the user names other text: the licence is not for it."""
    keys = ("data.path", "data.mixture", "data.store")
    if any(setting.key in keys and setting.origin.is_user for setting in chosen):
        return [setting for setting in preset if setting.key != "data.licence"]
    return preset


def _read_config(name: str, problems: Problems) -> tuple[list[Setting], list[Setting], bool]:
    """(settings of the run preset, settings of the file, whether all of `--config` was read)."""
    found_before = len(problems)
    run: list[Setting] = []
    file: list[Setting] = []
    if not (Path(name).is_file() or name.endswith((".yaml", ".yml")) or "/" in name):
        run = _preset_settings("runs", name, problems)
        return run, file, len(problems) == found_before
    try:
        entries = dict(read_yaml(Path(name)))
    except ConfigError as error:
        problems.add(error.what, got=error.got, fix=error.fix)
        return run, file, False
    entries.pop("about", None)  # the file may be a copy of a shipped preset
    base = entries.pop("preset", None)
    if base is not None:
        run = _preset_settings("runs", str(base.value), problems, f"{name}:{base.line}")
    is_read = len(problems) == found_before
    # A config.resolved.yaml records the layer of each value in the run that wrote it.
    layers = _recorded_layers(entries)
    for setting in _settings(entries, name, "file", problems):
        layer = layers.get(setting.key, "file")
        file.append(Setting(setting.key, setting.value, Origin(layer, setting.origin.where)))
    return run, file, is_read


def _recorded_layers(entries: dict[str, Entry]) -> dict[str, Layer]:
    """Remove `layers` from the entries of a config.resolved.yaml, and return the layer of each
    key."""
    layers: dict[str, Layer] = {}
    for layer in LAYERS:
        entry = entries.pop(f"layers.{layer}", None)
        if entry is not None and isinstance(entry.value, list):
            keys = (RENAMED.get(str(key), str(key)) for key in entry.value)
            layers |= dict.fromkeys(keys, layer)
    if not any(key.startswith("layers.") for key in entries):
        entries.pop("layers", None)
    return layers


def _preset_settings(axis: Axis, name: str, problems: Problems, where: str = "") -> list[Setting]:
    try:
        preset = load_preset(axis, name)
    except ConfigError as error:
        fix = error.fix
        if axis == "runs" and not where:
            where = f"--config {name}"
            if name in preset_names("models"):
                runs = ", ".join(run for run in preset_names("runs") if run.endswith(name))
                fix = f"{name} is a model: model.preset={name}"
                fix += f", or --config with one of: {runs}" if runs else ""
        problems.add(error.what, got=where or None, fix=fix)
        return []
    return _settings(preset.entries, preset.source, "preset", problems)


def _named_preset(
    axis: Axis, key: str, chosen: Sequence[Setting], problems: Problems
) -> list[Setting]:
    """Settings of the preset that `key` names, in the highest layer that sets it."""
    default = Setting(key, all_keys()[key].default, Origin("default", "defaults"))
    highest = next((setting for setting in reversed(chosen) if setting.key == key), default)
    if highest.value is None:
        return []
    name = str(highest.value)
    return _preset_settings(axis, name, problems, f"{key}={name} ({highest.origin.where})")


def _shape_of_init_from(chosen: Sequence[Setting], problems: Problems) -> list[Setting]:
    folders = [setting for setting in chosen if setting.key == "model.init_from"]
    if not folders or not isinstance(folders[-1].value, str):
        return []
    try:
        return shape_settings(folders[-1].value)
    except ConfigError as error:
        got = f"{error.got}\n{folders[-1].origin.where}"
        problems.add(error.what, got=got, fix=error.fix)
        return []


def _settings(
    entries: Mapping[str, Entry], name: str, layer: Layer, problems: Problems
) -> list[Setting]:
    """Convert the entries of a YAML file to settings. Each unknown key is a problem."""
    settings: list[Setting] = []
    unknown_sections: list[str] = []
    for written, entry in entries.items():
        key = RENAMED.get(written, written)
        where = f"{name}:{entry.line}"
        if any(key.startswith(f"{section}.") for section in unknown_sections):
            continue
        if entry.is_mapping and key in all_keys():
            unknown_sections.append(key)
            problems.add(f"{key} takes a value, not a mapping.", got=where)
        elif key in section_names():
            if not entry.is_mapping and entry.value is not None:
                problems.add(f"{key} is a section, not a value.", got=f"{entry.value!r} ({where})")
        elif key in all_keys():
            settings.append(Setting(key, entry.value, Origin(layer, where)))
        elif key in REMOVED:
            if entry.value != REMOVED[key]:
                problems.add(f"The key {key} no longer exists.", got=where, fix=WAS_REMOVED)
        else:
            near = None
            if entry.is_mapping:
                unknown_sections.append(key)
                near = did_you_mean(key, section_names())
            kind = "section" if entry.is_mapping else "key"
            fix = f"did you mean {near}?" if near else advise(key, _as_argument(entry.value))
            problems.add(f"There is no {kind} {key}.", got=where, fix=fix)
    return settings


def _as_argument(value: object) -> str:
    """A scalar from a file in its command-line form; "" for a list or a mapping."""
    is_scalar = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return str(value) if is_scalar else ""


def _validate(merged: Mapping[str, Setting], problems: Problems) -> Resolved | None:
    """Validate with the schema. Returns None if a value is invalid; `problems` has the reasons."""
    found_before = len(problems)
    values = {}
    for setting in merged.values():
        key = all_keys()[setting.key]
        if isinstance(setting.value, bool) and not key.is_switch:
            got = f"{str(setting.value).lower()} ({setting.origin.where})\n{key.doc}"
            problems.add(f"{key.name} does not take true or false.", got=got)
        else:
            values[key.name] = () if setting.value is None and key.is_list else setting.value
    try:
        config = RunConfig.model_validate(nested(values))
    except ValidationError as error:
        _add_schema_problems(error, merged, problems)
        return None
    if len(problems) > found_before:
        return None
    origins = {key: merged[key].origin if key in merged else DEFAULT for key in all_keys()}
    return Resolved(config, origins)


def _add_schema_problems(
    error: ValidationError, merged: Mapping[str, Setting], problems: Problems
) -> None:
    """Add one problem per key, with the place of its value. pydantic's messages for the members of
    a union are joined."""
    reasons: dict[str, list[str]] = {}
    for detail in error.errors():
        parts = [str(part) for part in detail["loc"]]
        names = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        name = next((name for name in names if name in all_keys()), ".".join(parts))
        text = detail["msg"].removeprefix("Value error, ")
        reasons.setdefault(name, []).append(text[:1].lower() + text[1:])
    for name, texts in reasons.items():
        setting = merged.get(name)
        what = f"{name}: {', or '.join(dict.fromkeys(texts))}."
        if setting is None:
            problems.add(what)
            continue
        shown = f"{setting.value!r} ({setting.origin.where})"
        if all_keys()[name].names_a_variable:  # the value may be the secret itself
            shown = f"a value that is not shown here ({setting.origin.layer})"
        problems.add(what, got=f"{shown}\n{all_keys()[name].doc}", fix=_fix_of(setting))


def _fix_of(setting: Setting) -> str | None:
    key = all_keys()[setting.key]
    if key.names_a_variable:
        return f"put it into a variable, and name that: export NAME=..., then {key.name}=NAME"
    if key.choices and isinstance(setting.value, str):
        near = did_you_mean(setting.value, key.choices)
        return f"{key.name}={near}" if near else None
    if key.is_text and isinstance(setting.value, (int, float)):
        return f'quote it: "{setting.value}"'
    return None
