"""Removes secrets from data that leaves the machine, by the name of a key, shape, and value.

It removes strings under keys like api_key, password or auth_token; the user part of URLs (git
remotes with a token), and the query of signed URLs; and the values of environment variables with
such names, wherever they occur. Numbers stay (`max_tokens`), and so do `tokenizer` and `text_key`.
A secret of another kind is not recognized: keep secrets out of configurations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
_SECRET_WORDS = re.compile(
    r"token|secrets?|passwords?|passwd|passphrase|credentials?|auth|authorization|apikey|cookies?"
)
_BEFORE_KEY = frozenset({"api", "access", "secret", "private"})
_NOT_SECRET = frozenset({"text_key", "eos_token", "bos_token", "pad_token", "unk_token"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_IN_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.\-]*://)[^/\s@]*@")
_SECRET_IN_QUERY = re.compile(
    r"(?i)(?P<name>[?&;](?:[\w\-]*(?:token|key|secret|password|signature))=)[^&\s\"'<>]+"
)
_QUERY = re.compile(r"(?P<address>\b[A-Za-z][\w+.\-]*://[^\s?#\"'<>`]*)\?(?P<query>[^\s#\"'<>`]*)")
_SIGNED = re.compile(
    r"(?i)(?:^|[&;])(?:x-(?:amz|goog|oss|cos|ms|bce|obs|tos)-|q-(?:sign|ak|key|url|header)"
    r"|sig=|sign=|signature=|hmac="
    r"|[\w\-]*(?:accesskeyid|access-key-id|key-pair-id|security-token|credential|expires?|policy"
    r"|auth\w*|jwt|sas)=)"
    r"|=[\w\-.~%+/]{32,}"  # under any name: values that are typed are shorter
)
_KNOWN_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_\-]{20,}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|"
    r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{15,}|npm_[A-Za-z0-9]{30,}|pypi-[\w\-]{30,}|"
    r"xox[abeoprs]-[A-Za-z0-9\-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|LTAI[0-9A-Za-z]{12,}|AKID[0-9A-Za-z]{20,}|"
    r"AIza[\w\-]{30,}|ms-[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|ms-[0-9a-fA-F]{32,}|"
    r"eyJ[\w\-]{8,}\.eyJ[\w\-]{8,}\.[\w\-]*"
    r")(?![A-Za-z0-9])"
)
"""Hugging Face, OpenAI, Stripe, GitHub, GitLab, npm, PyPI, Slack, AWS, Aliyun, Tencent, Google,
ModelScope, JWT."""
_SHORTEST_SECRET = 6  # a shorter value would hide ordinary words


def names_a_secret(key: str) -> bool:
    """Whether a key names a secret: `hub.apiKey`, `SWANLAB_API_KEY`; not `tokenizer`."""
    last = key.rsplit(".", 1)[-1]
    if last.lower() in _NOT_SECRET:
        return False
    words = [word.lower() for word in _WORD.findall(last)]
    keys = [i for i, word in enumerate(words) if word in ("key", "keys")]
    is_key = any(i == len(words) - 1 or (i > 0 and words[i - 1] in _BEFORE_KEY) for i in keys)
    return is_key or any(map(_SECRET_WORDS.fullmatch, words))


def environment_secrets(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Values of environment variables whose names name a secret, the longest first."""
    found = {
        value
        for name, value in environ.items()
        if names_a_secret(name) and len(value) >= _SHORTEST_SECRET
    }
    return tuple(sorted(found, key=len, reverse=True))


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the given secrets, users and secrets in URLs, and tokens of a known shape."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _USER_IN_URL.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(_without_signature, text)
    text = _SECRET_IN_QUERY.sub(rf"\g<name>{HIDDEN}", text)
    return _KNOWN_SHAPES.sub(HIDDEN, text)


def _without_signature(found: re.Match[str]) -> str:
    return f"{found['address']}?{HIDDEN}" if _SIGNED.search(found["query"]) else found[0]


def without_queries(text: str) -> str:
    """`redact_text`, and without queries of addresses, since a run's records may be published."""
    return _QUERY.sub(rf"\g<address>?{HIDDEN}", redact_text(text))


def holds_token(text: str) -> bool:
    """Whether `text` holds an access token of a known shape."""
    return _KNOWN_SHAPES.search(text) is not None


def redact(value: Any, secrets: Iterable[str] = ()) -> Any:
    """A copy of a configuration (mappings, sequences, scalars) that can be uploaded."""
    secrets = tuple(secrets)
    if isinstance(value, Mapping):
        copy = {}
        for key, inner in value.items():
            is_secret = isinstance(inner, str | bytes) and inner and names_a_secret(str(key))
            copy[redact_text(str(key), secrets)] = HIDDEN if is_secret else redact(inner, secrets)
        return copy
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(inner, secrets) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact_text(str(value), secrets)
