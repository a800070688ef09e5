"""Remove secrets from data that leaves the machine, by the name of their key, or by their shape.

These are removed: strings under keys such as api_key, password or auth_token; the user part of URLs
(git remotes with a token) and the query of signed URLs; tokens of a known shape; and, wherever they
occur, the values of environment variables whose names name a secret. Numbers stay (`max_tokens`),
and so do `tokenizer` and `text_key`. Other secrets are not recognized: keep secrets out of
configurations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
_SECRET_WORDS = re.compile(
    r"(?:auth|access|api|bot|hf|refresh)?token|\w*(?:secrets?|passwords?|passwd|passphrase|apikey)"
    r"|credentials?|auth|authorization|cookies?|jwt|webhook"
)
_LAST_WORDS = frozenset({"pass", "pwd", "pat", "dsn"})
"""Words that name a secret at the end of a name, after another word: `SMTP_PASS`, not `PWD`."""
_BEFORE_KEY = frozenset({"api", "access", "secret", "private"})
_NOT_SECRET = frozenset({"text_key", "eos_token", "bos_token", "pad_token", "unk_token"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_IN_URL = re.compile(  # a password may hold `@`, and after a user's name `/`
    r"(?P<scheme>[A-Za-z][\w+.\-]{0,30}://)"
    r"(?:[^/\s\"'<>]{0,300}|[^/\s@:\"'<>]{0,99}:(?!\d+/)[^\s@\"'<>]{0,300})@"
)
_HOOK = re.compile(
    r"(?P<address>https://(?:hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/\d+/"
    r"|open\.(?:feishu\.cn|larksuite\.com)/open-apis/bot/v2/hook/))[^\s\"'<>]+"
)
"""Addresses of Slack, Discord and Feishu, whose path is the secret."""
_NAMED = re.compile(
    r"""(?<![\w.])(?P<before>(?P<name>[A-Za-z][\w.\-]{0,80})(?:=|["']\s?:\s?)"""
    r"""|--(?P<flag>[A-Za-z][\w.\-]{0,80})\s+(?!-))"""
    r"""(?:"[^"]{6,200}"|'[^']{6,200}'|[^\s"'&;,<>(){}\[\]]{6,})"""
)
"""`API_KEY=value`, `"password": "value"`, `--api-key value`."""
_AUTHORIZATION = re.compile(
    r"(?i)\b(?P<scheme>bearer|authorization\W{1,4}basic) +(?=[\w\-./+=~]*[\d=])[\w\-./+=~]{10,}"
)
_SECRET_IN_QUERY = re.compile(
    r"(?i)(?P<name>[?&;](?:[\w\-]*(?:token|key|secret|password|signature))=)[^&\s\"'<>]+"
)
_QUERY = re.compile(
    r"(?P<address>\b[A-Za-z][\w+.\-]{0,30}://[^\s?#\"'<>`]{0,2000})\?(?P<query>[^\s#\"'<>`]*)"
)
_SIGNED = re.compile(
    r"(?i)(?:^|[&;])(?:x-(?:amz|goog|oss|cos|ms|bce|obs|tos)-|q-(?:sign|ak|key|url|header)"
    r"|sig=|sign=|signature=|hmac="
    r"|[\w\-]*(?:accesskeyid|access-key-id|key-pair-id|security-token|credential|expires?|policy"
    r"|auth\w*|jwt|sas)=)"
    r"|=[\w\-.~%+/]{32,}"  # a long value under any name: people type shorter values
)
_KNOWN_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:hf_|api_org_|gsk_|xai-|pplx-|r8_|KGAT_|gh[pousr]_|npm_|rubygems_|do[opr]_v1_|dapi|whsec_"
    r"|shp(?:at|ca|pa|ss)_|[sr]k_(?:live|test)_|lin_api_|ntn_|NRAK-|AGE-SECRET-KEY-|AK(?:ID|LT))"
    r"[A-Za-z0-9]{16,}"
    r"|sk-[\w\-]{20,}|(?:github_pat_|hf_oauth_|pypi-|nvapi-|tgp_v1_|wandb_v\d_|pcsk_"
    r"|gl(?:pat|dt|rt|ptt|cbt|oas|soat|ft|imt|agent|sa)[-_]|lsv2_[ps][tk]_|dckr_(?:pat|oat)_|figd_|ATATT3|GOCSPX-|hv[sbr]\.|ya29\.|1//0|xapp-"
    r"|bce-v3/ALTAK-\w+/)(?=[\w\-.=]*[\dA-Z])[\w\-.=]{15,}"
    r"|xox[a-z]-[A-Za-z0-9\-]{10,}|A(?:KI|SI|BI|CC)A[0-9A-Z]{16}|LTAI[0-9A-Za-z]{12,}"
    r"|AIza[\w\-]{30,}|ms-[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|ms-[0-9a-fA-F]{32,}"
    r"|(?:key-|SK)[0-9a-f]{32}|[0-9a-f]{32}\.[A-Za-z0-9]{16}|SG\.[\w\-]{16,}\.[\w\-]{16,}"
    r"|[A-Za-z0-9]{14}\.atlasv1\.[\w\-=]{32,}|\d{8,10}:AA[\w\-]{32,}"
    r"|[MNO][\w\-]{23,27}\.[\w\-]{6}\.[\w\-]{27,}|eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-.]*"
    r")(?![A-Za-z0-9])"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
"""Model hubs and services (Hugging Face, ModelScope, OpenAI, Anthropic, Groq, xAI, NVIDIA, Zhipu),
code hosts and registries, clouds (AWS, Google, Aliyun, Tencent, Volcengine, Baidu, DigitalOcean,
Databricks), trackers, chat bots, mail, payment, secret stores; JWT; private keys in PEM."""
_MIN_SECRET = 6  # a shorter value would hide ordinary words


def names_a_secret(key: str) -> bool:
    """Whether a key names a secret: `hub.apiKey`, `SWANLAB_API_KEY`; not `tokenizer`."""
    last = key.rsplit(".", 1)[-1]
    if last.lower() in _NOT_SECRET:
        return False
    words = [word.lower() for word in _WORD.findall(last)]
    keys = [i for i, word in enumerate(words) if word in ("key", "keys")]
    is_key = any(i == len(words) - 1 or (i > 0 and words[i - 1] in _BEFORE_KEY) for i in keys)
    is_last = len(words) > 1 and words[-1] in _LAST_WORDS
    return is_key or is_last or any(map(_SECRET_WORDS.fullmatch, words))


def environment_secrets(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Values of environment variables whose names name a secret, the longest first."""
    found = {
        value
        for name, value in environ.items()
        if names_a_secret(name) and len(value) >= _MIN_SECRET
    }
    return tuple(sorted(found, key=len, reverse=True))


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the given secrets, users and secrets in URLs, and tokens of a known shape."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    text = _USER_IN_URL.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _HOOK.sub(rf"\g<address>{HIDDEN}", text)
    text = _QUERY.sub(_without_signature, text)
    text = _SECRET_IN_QUERY.sub(rf"\g<name>{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\g<scheme> {HIDDEN}", _KNOWN_SHAPES.sub(HIDDEN, text))
    return _NAMED.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    is_secret = names_a_secret(found["name"] or found["flag"])
    return f"{found['before']}{HIDDEN}" if is_secret else found[0]


def _without_signature(found: re.Match[str]) -> str:
    return f"{found['address']}?{HIDDEN}" if _SIGNED.search(found["query"]) else found[0]


def without_queries(text: str) -> str:
    """`redact_text` without any query of a URL, for records of a run, which may be published."""
    return _QUERY.sub(rf"\g<address>?{HIDDEN}", redact_text(text))


def redact_argument(argument: str) -> str:
    """An argument of the command line for the record of a run: `--api_key=abc` -> `--api_key=***`,
    `https://user:pass@host` -> `https://***@host`."""
    name, equals, _ = argument.partition("=")
    if equals and names_a_secret(name.lstrip("-")):
        return f"{name}={HIDDEN}"
    return without_queries(redact_text(argument, environment_secrets()))


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
