"""`wikillm presets`: what ships with the package, on the axes model, data and run. Computed without torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "List the model, data and run presets."


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON object: axis -> name -> facts"
    )


def run(args: argparse.Namespace) -> int:
    presets = list_presets()
    if args.json:
        print(json.dumps(presets, indent=2, ensure_ascii=False))
        return 0
    uses = {"models": "model.preset=NAME", "data": "data.preset=NAME", "runs": "--config NAME"}
    width = max(len(name) for axis in presets.values() for name in axis)
    for axis, entries in presets.items():
        print(f"{axis} ({uses[axis]})")
        for name, facts in entries.items():
            count = f"{facts['parameters']:>14,}  " if "parameters" in facts else ""
            print(f"  {name:<{width}}  {count}{facts['about']}")
        print()
    print("Parameter counts include the embedding; a tied output projection counts once.")
    return 0


def list_presets() -> dict[str, dict[str, dict[str, Any]]]:
    """{axis: {name: facts}}; models and runs have `parameters`, models in the order of their size."""
    from wikillm.config.load import load
    from wikillm.config.presets import load_preset, preset_names
    from wikillm.plan.params import count_parameters

    def facts(words: list[str], run: str | None, about: str) -> dict[str, Any]:
        model = load(run, words).config.model
        rows = model.vocab_size if isinstance(model.vocab_size, int) else 0
        count = count_parameters(model, rows)
        return {
            "about": about,
            "model": model.preset,
            "parameters": count.total,
            "vocab_size": rows,
        }

    models = {
        name: facts([f"model.preset={name}"], None, load_preset("models", name).about)
        for name in preset_names("models")
    }
    runs = {name: facts([], name, load_preset("runs", name).about) for name in preset_names("runs")}
    return {
        "models": dict(sorted(models.items(), key=lambda item: item[1]["parameters"])),
        "data": {name: {"about": load_preset("data", name).about} for name in preset_names("data")},
        "runs": dict(sorted(runs.items(), key=lambda item: item[1]["parameters"])),
    }
