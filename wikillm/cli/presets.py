"""`wikillm presets`: the shipped presets on the axes model, data and run, without torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

from wikillm.cli.arguments import add_json
from wikillm.config.load import load
from wikillm.config.presets import Axis, load_preset, preset_names
from wikillm.plan.params import count_parameters


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "one JSON object: axis -> name -> values")


def run(args: argparse.Namespace) -> int:
    presets = list_presets()
    if args.json:
        print(json.dumps(presets, indent=2, ensure_ascii=False))
        return 0
    uses = {"models": "model.preset=NAME", "data": "data.preset=NAME", "runs": "--config NAME"}
    width = max(len(name) for axis in presets.values() for name in axis)
    for axis, entries in presets.items():
        print(f"{axis} ({uses[axis]})")
        for name, values in entries.items():
            count = f"{values['parameters']:>14,}  " if "parameters" in values else ""
            print(f"  {name:<{width}}  {count}{values['about']}")
        print()
    print("Parameter counts include the embedding; a tied output projection counts once.")
    return 0


def list_presets() -> dict[str, dict[str, dict[str, Any]]]:
    """{axis: {name: values}}. The values of models and runs include `parameters`, by which they are
    sorted."""

    def values(words: list[str], run: str | None, about: str) -> dict[str, Any]:
        model = load(run, words).config.model
        rows = model.vocab_size if isinstance(model.vocab_size, int) else 0
        parameters = count_parameters(model, rows).total
        found = {"about": about, "model": model.preset}
        return found | {"parameters": parameters, "vocab_size": rows}

    def by_size(axis: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return dict(sorted(axis.items(), key=lambda item: item[1]["parameters"]))

    def about(axis: Axis) -> dict[str, str]:
        return {name: load_preset(axis, name).about for name in preset_names(axis)}

    models = {
        name: values([f"model.preset={name}"], None, text) for name, text in about("models").items()
    }
    runs = {name: values([], name, text) for name, text in about("runs").items()}
    data = {name: {"about": text} for name, text in about("data").items()}
    return {"models": by_size(models), "data": data, "runs": by_size(runs)}
