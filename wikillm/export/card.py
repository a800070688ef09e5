"""The model card: what the model is, what it was trained on, how, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from wikillm.core.units import format_count


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What a card says besides the weights; every table may be empty.

    Args:
        name: of the run.
        step: optimizer step of the checkpoint.
        data: label -> value: sources, documents, tokens, tokenizer, fingerprint of the store.
        training: dotted configuration key -> value.
        metrics: label -> value: losses, bits per byte, tokens seen.
        environment: package or fact -> version or value.
    """

    name: str
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("The history of", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=True, temperature=0.8, top_p=0.95)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```"""


def render_card(
    facts: ExportFacts, config: PretrainedConfig, *, parameters: int, trained_as: str, eos: str
) -> str:
    """README.md of the exported folder, with the metadata block that hubs read.

    No licence is named: the weights' licence is their maker's choice, and the data's may bind it.

    Args:
        config: of the folder.
        trained_as: the class that was trained.
        eos: the token that ends a document.
    """
    (architecture,) = config.architectures or [trained_as]
    dtype = str(config.dtype).removeprefix("torch.")
    step = f", step {facts.step:,}" if facts.step is not None else ""
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags:\n- wikillm\n- pretrained\n---",
        f"# {facts.name}",
        f"A base language model pretrained with WikiLLM: {format_count(parameters)} parameters "
        f"({parameters:,}), {architecture}, {dtype}, vocabulary {config.vocab_size:,}{step}. It "
        "continues text; it has not been tuned to follow instructions, and may write what is false "
        "or offensive.",
        "## Use",
        _USE,
        f"Documents end with `{eos}`, and nothing is added before them: the tokenizer adds no "
        "tokens of its own. In training, text that looks like a special token was ordinary text; "
        "`tokenizer(text, split_special_tokens=True)` reads it so.",
    ]
    if architecture != trained_as:
        parts.append(
            f"The model was trained as `{trained_as}` and is written as `{architecture}` with an "
            "output projection whose bias is 0: it computes the same, and every version of "
            "transformers opens the folder with its own tokenizer."
        )
    tables = {"Data": facts.data, "Metrics": facts.metrics, "Training": facts.training}
    for title, rows in (tables | {"Made with": facts.environment}).items():
        if rows:
            cells = (f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())
            parts += [f"## {title}", "\n".join(["| | |", "|---|---|", *cells])]
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        text = f"{value:,}"
    elif isinstance(value, (list, tuple)):
        text = ", ".join(map(str, value))
    else:
        text = str(value)
    return text.replace("|", "\\|").replace("\n", " ")
