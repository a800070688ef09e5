"""Checks names of machines before they are used on a command line, and reads hostfiles.

A host is a DNS name or an IP address: nothing that ssh takes for an option, and no character that a
shell interprets. DeepSpeed's own hostfile parser accepts `-oProxyCommand=...`, `slots=0` and
duplicates. This parser reports all such mistakes together, with file and line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.errors import ConfigError, Problems

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_SLOTS = re.compile(r"slots=([0-9]{1,9})")
MAX_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Host:
    """A node and its number of processes, one per GPU."""

    name: str
    slots: int


def is_host(text: str) -> bool:
    """Whether it is a DNS name, an alias of ssh (which may have `_`) or an IP address."""
    if _HOST.fullmatch(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone may have any character


def bare_host(text: str) -> str:
    """A host as ssh and torch expect it: an IPv6 address without brackets."""
    inner = text[1:-1]
    return inner if text == f"[{inner}]" and ":" in inner and is_host(inner) else text


def bracketed_host(text: str) -> str:
    """A host as rsync's `HOST:FOLDER` needs it: an IPv6 address in brackets."""
    return f"[{text}]" if ":" in text and not text.startswith("[") else text


def check_destination(text: str) -> str:
    """`host` or `user@host` as ssh expects it. Raises ConfigError for any other text."""
    user, at, host = text.rpartition("@")
    if is_host(bare_host(host)) and (not at or _USER.fullmatch(user)):
        return f"{user}{at}{bare_host(host)}"
    raise ConfigError(
        "This is not a host.",
        got=repr(text),
        fix="a name or an IP address, such as user@gpu1.example.org or user@[2001:db8::1]; "
        "a port or a zone belongs in ~/.ssh/config",
    )


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of a file with lines `NAME slots=N` and `#` comments, in their order.

    Raises ConfigError with all mistakes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            "The hostfile cannot be read.", got=f"{path}: {reason}", fix="--hostfile FILE"
        ) from None
    # Collect the hosts and the mistakes of all lines.
    problems = Problems(ConfigError)
    lines: dict[str, int] = {}  # the first line of each host
    hosts: list[Host] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        words = raw.split("#", 1)[0].split()
        if not words:
            continue
        name = bare_host(words[0])
        slots = _SLOTS.fullmatch(" ".join(words[1:]))
        if not is_host(name) or slots is None or not 1 <= int(slots[1]) <= MAX_SLOTS:
            what = f"A line of a hostfile must be a host and its slots, 1 to {MAX_SLOTS}."
            problems.add(what, got=f"{path}:{number}  {raw.strip()!r}", fix="node1 slots=8")
            continue
        if name in lines:
            problems.add(
                f"The host {name} appears twice.",
                got=f"{path}:{number} and {path}:{lines[name]}",
                fix=f"one line with all its GPUs: {name} slots=N",
            )
        lines.setdefault(name, number)
        hosts.append(Host(name, int(slots[1])))
    if not hosts and not len(problems):
        problems.add(
            "The hostfile names no host.", got=str(path), fix="one line per node: node1 slots=8"
        )
    problems.raise_if_any()
    return tuple(hosts)
