"""Names of machines, checked before any of them reaches a command line.

A host is a DNS name or an IP address: nothing that ssh takes for an option, and no character that a
shell interprets. DeepSpeed's own hostfile parser accepts `-oProxyCommand=...`, `slots=0` and
duplicates; this one refuses them together, each with file and line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.errors import ConfigError, Problems

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
MOST_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Host:
    """A node and how many processes it runs, one per GPU."""

    name: str
    slots: int


def is_host(text: str) -> bool:
    """A DNS name or an IP address."""
    if _HOST.fullmatch(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone may have any character


def bare_host(text: str) -> str:
    """A host as ssh and torch take it: `[2001:db8::1]` without brackets, others unchanged."""
    inner = text[1:-1]
    return inner if text == f"[{inner}]" and ":" in inner and is_host(inner) else text


def bracketed_host(text: str) -> str:
    """A host as in rsync's `HOST:FOLDER`: an IPv6 address in brackets."""
    return f"[{text}]" if ":" in text and not text.startswith("[") else text


def check_destination(text: str) -> str:
    """`host` or `user@host` as ssh takes it, without brackets. Raises ConfigError."""
    user, at, host = text.rpartition("@")
    if is_host(bare_host(host)) and (not at or _USER.fullmatch(user)):
        return f"{user}{at}{bare_host(host)}"
    fix = "a name or an IP address, such as user@gpu1.example.org or user@[2001:db8::1]"
    if "%" in host:
        fix = "an address without a zone, or a name that ~/.ssh/config gives that address"
    elif re.fullmatch(r"(\[.*\]|[^:]+):[0-9]+", host):
        fix = f"--host {user}{at}{host.rpartition(':')[0]}, and the port in ~/.ssh/config"
    raise ConfigError("This is not a host.", got=repr(text), fix=fix)


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Hosts in the order of the file: `NAME slots=N` lines, `#` comments.

    Raises ConfigError with all mistakes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            "The hostfile cannot be read.", got=f"{path}: {reason}", fix="--hostfile FILE"
        ) from None
    problems = Problems(ConfigError)
    lines: dict[str, int] = {}
    hosts: list[Host] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        words = raw.split("#", 1)[0].split()
        if not words:
            continue
        where = f"{path}:{number}"
        host = _read_line(words, where, raw.strip(), problems)
        if host is None:
            continue
        if host.name in lines:
            problems.add(
                f"The host {host.name} appears twice.",
                got=f"{where} and {path}:{lines[host.name]}",
                fix=f"one line with all its GPUs: {host.name} slots=N",
            )
        lines.setdefault(host.name, number)
        hosts.append(host)
    if not hosts and not len(problems):
        problems.add(
            "The hostfile names no host.", got=str(path), fix="one line per node: node1 slots=8"
        )
    problems.raise_if_any()
    return tuple(hosts)


def _read_line(words: list[str], where: str, raw: str, problems: Problems) -> Host | None:
    name = bare_host(words[0])
    rest = words[1:]
    if not is_host(name):
        problems.add(
            "This is not a host.",
            got=f"{where}  {raw!r}",
            fix="a name or an IP address, then slots=N: node1 slots=8",
        )
        return None
    match = re.fullmatch(r"slots=([0-9]{1,9})", rest[0]) if len(rest) == 1 else None
    if match is None:
        problems.add(
            "A line of a hostfile must be a host and its slots.",
            got=f"{where}  {raw!r}",
            fix=f"{name} slots=8",
        )
        return None
    slots = int(match[1])
    if not 1 <= slots <= MOST_SLOTS:
        problems.add(
            f"slots={slots} is not a number of GPUs (1 to {MOST_SLOTS}).",
            got=f"{where}  {raw!r}",
            fix=f"{name} slots=8, or remove the line to leave the node out",
        )
        return None
    return Host(name, slots)
