"""Read, check and render chat templates: Jinja text that turns messages into one prompt.

transformers keeps a template in chat_template.jinja (since 4.44) or in tokenizer_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError
from wikillm.core.files import read_object

TEMPLATE_FILE = "chat_template.jinja"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = re.compile(r"<\|[^|<>\s]{1,60}\|>")
_PLAIN_EOS = ("</s>", "<eos>")  # special tokens that `_SPECIAL` does not match
_ANSWER = "ANSWER-5f1c"


def read_chat_template(folder: Path) -> str | None:
    """The chat template in a tokenizer folder; of several the template named default. Or None."""
    with suppress(OSError):
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    found = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # [{"name": "default", "template": "..."}, ...]
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) and found else None


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    eos_token: str,
    for_answer: bool = True,
) -> str:
    """The prompt that transformers renders from the messages.

    `for_answer` adds the text that begins an answer. Raises ConfigError when the template is
    invalid or refuses the messages.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    options: dict[str, Any] = {"bos_token": eos_token, "eos_token": eos_token}
    try:
        rendered: Any = render_jinja_template(
            [[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=for_answer,
            **options,
        )
    except (TemplateError, TypeError, KeyError) as error:
        what = "The chat template cannot be applied."
        fix = "correct the template, or use --chat-template chatml"
        raise ConfigError(what, got=f"{type(error).__name__}: {error}", fix=fix) from error
    return str(rendered[0][0])


def check_chat_template(template: str, vocabulary: Mapping[str, int], eos_token: str) -> str:
    """Check a template against a tokenizer; return the token that ends an answer.

    This token follows the answer in the rendered text; if none follows, it is `eos_token`.

    Raises ConfigError when the template fails, or uses special tokens that are not in the
    vocabulary. They would be encoded as ordinary text, on which the model was not trained.
    """
    missing = sorted(set(_SPECIAL.findall(template)) - vocabulary.keys())
    if missing:
        raise ConfigError(
            "The tokenizer lacks special tokens that the chat template uses.",
            got=", ".join(missing),
            fix="pass --chat-template a file that uses only plain words and tokens of this "
            "tokenizer; or train with a tokenizer that has these tokens (data.tokenizer=qwen2)",
        )
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _ANSWER}]
    rendered = render_chat(template, messages, eos_token=eos_token, for_answer=False)
    _, found, after = rendered.partition(_ANSWER)
    if not found:
        what = "The chat template does not output the answer."
        fix = "use message['content'] in the template"
        raise ConfigError(what, got=rendered[:200], fix=fix)
    # Prefer the longest name, since the name of a token may begin with the name of another.
    special = (name for name in vocabulary if _SPECIAL.fullmatch(name) or name in _PLAIN_EOS)
    ends = [name for name in special if after.lstrip().startswith(name)]
    return max(ends, key=len, default=eos_token)
