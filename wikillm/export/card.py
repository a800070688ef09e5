"""The model card: the model, its training data, its training, and its results.

The card is one README.md with an English and a Chinese part, because the hubs show only this file.
Its metadata block has the keys that both hubs read. The text is in templates/; `_ZH` translates the
labels of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from transformers import PretrainedConfig

from wikillm.core.units import format_count

UNKNOWN = "unknown"
CURVE = "loss.svg"
Grid = tuple[Sequence[str], Sequence[Sequence[str]]]
"""The head of a table, and its rows."""


@dataclass(frozen=True, slots=True)
class CardContent:
    """The parts of a model card that do not follow from the weights. Any table may be empty.

    Args:
        name: name of the run.
        step: optimizer step of the checkpoint.
        data: {label: value} of sources, documents, tokens, filters, fingerprint of the store.
        training: {dotted configuration key: value}.
        metrics: {label: value} of losses, bits per byte and tokens trained on.
        evaluations: (head, rows) of tables that `wikillm eval` recorded.
        provenance: {label: value} of WikiLLM's version, the ledger's digest and its audit.
        environment: {package or property of the machine: version or value}.
        licence: licence id of the weights, as hubs spell it (apache-2.0).
        data_licence: licence id of the training data.
        languages: ISO 639-1 codes of the data's languages.
        curve: SVG of the loss curves; "" if there is no curve.
        chat_template: Jinja text for the exported folder; "" for a folder without a template.
        template_name: the name that the card gives to the chat template.
    """

    name: str
    step: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[Grid, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    licence: str = UNKNOWN
    data_licence: str = UNKNOWN
    languages: tuple[str, ...] = ()
    curve: str = ""
    chat_template: str = ""
    template_name: str = ""


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("%s", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=64, do_sample=True, temperature=0.8, top_p=0.95)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```"""

_ZH = {
    "Model": "模型",
    "Data": "数据",
    "Evaluation": "评测",
    "Training": "训练",
    "Provenance": "来历",
    "Made with": "环境",
    "wikillm source": "WikiLLM 源码版本",
    "source": "来源",
    "further sources": "其余来源",
    "training documents": "训练文档",
    "training tokens": "训练词元",
    "training bytes": "训练文本字节",
    "held-out documents": "留出文档",
    "held-out tokens": "留出词元",
    "held-out bytes": "留出文本字节",
    "dropped": "丢弃",
    "tokenizer": "分词器",
    "token store": "词元存储",
    "tokens trained on": "已训练词元",
    "training loss, nats per token": "训练损失（每词元 nat）",
    "held-out loss, nats per token": "留出集损失（每词元 nat）",
    "held-out bits per byte": "留出集每字节比特数",
    "layers": "层数",
    "hidden size": "隐藏维度",
    "feed-forward size": "前馈维度",
    "attention heads": "注意力头",
    "key and value heads": "键值头",
    "positions": "位置数",
    "tied embeddings": "共享词嵌入",
    "rope theta": "rope theta",
    "ranks": "rank 数",
    "weights": "权重",
    "ledger": "账本",
    "audit": "审计",
    "step": "步",
    "text": "文本",
    "bits/byte": "每字节比特数",
    "perplexity": "困惑度",
    "tokens": "词元",
    "bytes": "字节",
    "documents": "文档",
    "task": "任务",
    "shots": "示例数",
    "questions": "题数",
    "accuracy": "准确率",
    "95 % interval": "95 % 区间",
    "by bytes": "按字节",
    "chance": "随机水平",
    "verdict": "结论",
}


def card_files(
    content: CardContent, config: PretrainedConfig, parameters: int, trained_as: str, eos: str
) -> dict[str, str]:
    """{file name: text} of the card and of the curve that it shows."""
    card = render_card(content, config, parameters=parameters, trained_as=trained_as, eos=eos)
    return {"README.md": card} | ({CURVE: content.curve} if content.curve else {})


def render_card(
    content: CardContent, config: PretrainedConfig, *, parameters: int, trained_as: str, eos: str
) -> str:
    """README.md of the exported folder, with the metadata block that hubs read.

    Args:
        config: configuration of the exported model.
        trained_as: name of the model class that was trained.
        eos: token at the end of each document.
    """
    (architecture,) = config.architectures or [trained_as]
    length = content.training.get("train.sequence_length") or config.max_position_embeddings
    values = {
        "name": content.name,
        "step": f"{content.step:,}" if content.step is not None else "",
        "count": format_count(parameters),
        "parameters": f"{parameters:,}",
        "architecture": architecture,
        "trained_as": trained_as,
        "is_rewritten": architecture != trained_as,
        "dtype": str(config.dtype).removeprefix("torch."),
        "vocabulary": f"{config.vocab_size:,}",
        "length": f"{int(length):,}",
        "eos": eos,
        "licence": content.licence,
        "data_licence": content.data_licence,
        "curve": CURVE if content.curve else "",
        "chat_template": content.template_name,
    }
    tables = {
        "Model": _shape(config),
        "Data": content.data,
        "Evaluation": content.metrics,
        "Training": content.training,
        "Provenance": content.provenance,
        "Made with": content.environment,
    }
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # Markdown
    )
    parts = [_front_matter(content)]
    for language, prompt in (("en", "The history of"), ("zh", "北京是")):
        translate = _ZH if language == "zh" else {}
        grids = "".join(f"\n\n{_grid(*grid, translate)}" for grid in content.evaluations)
        shown = [
            (
                translate.get(title, title),
                _table(rows, translate) + (grids if title == "Evaluation" else ""),
            )
            for title, rows in tables.items()
            if rows or (grids and title == "Evaluation")
        ]
        template = templates.get_template(f"card.{language}.md.j2")
        parts.append(template.render(values, tables=shown, use=_USE % prompt).strip())
    return "\n\n".join(parts) + "\n"


def _front_matter(content: CardContent) -> str:
    """The metadata block. Only ModelScope reads `frameworks` and `tasks`."""
    values: dict[str, Any] = {"license": content.licence}
    if content.languages:
        values["language"] = list(content.languages)
    values |= {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "frameworks": ["pytorch"],
        "tasks": ["text-generation"],
        "tags": ["wikillm", "pretrained", "base-model"],
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _shape(config: PretrainedConfig) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "feed-forward size": config.intermediate_size,
        "attention heads": config.num_attention_heads,
        "key and value heads": config.num_key_value_heads,
        "positions": config.max_position_embeddings,
        "tied embeddings": config.tie_word_embeddings,
        "rope theta": (config.rope_parameters or {}).get("rope_theta"),
    }


def _table(rows: Mapping[str, Any], translate: Mapping[str, str]) -> str:
    """A Markdown table. If a label has no translation, its part before a colon is translated, as in
    `dropped: redirect`."""
    lines = ["| | |", "|---|---|"]
    for label, value in rows.items():
        first, colon, rest = label.partition(":")
        shown = translate.get(label) or translate.get(first, first) + colon + rest
        lines.append(f"| {_cell(shown)} | {_cell(value)} |")
    return "\n".join(lines)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], translate: Mapping[str, str]) -> str:
    cells = [[translate.get(name, name) for name in head], ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in cells)


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


def languages_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Languages of the texts: `zh` if a tenth of the letters are hanzi, `en` if the most common
    English words are frequent. Other languages are not detected.
    """
    text = " ".join(texts)
    letters = sum(character.isalpha() for character in text)
    hanzi = sum("\u4e00" <= character <= "\u9fff" for character in text)
    kana = sum("\u3040" <= character <= "\u30ff" for character in text)
    words = text.lower().split()
    english = sum(word in ("the", "of", "and", "in", "to", "is") for word in words)
    found = []
    if hanzi * 10 > letters and kana * 20 < hanzi:
        found.append("zh")
    if english * 20 > len(words):
        found.append("en")
    return tuple(found)
