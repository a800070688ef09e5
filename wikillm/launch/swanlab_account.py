"""Finds SwanLab's address and key, in the environment or in SwanLab's own netrc.

The key is never on a command line or in a configuration, and is never printed. `swanlab login`
writes the netrc: .swanlab/.netrc in this folder, else .netrc in $SWANLAB_ROOT, $SWANLAB_SAVE_DIR or
~/.swanlab. Its machine is the address, and its password is the key, which is sent to this address
only.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from wikillm.core.errors import ConfigError
from wikillm.supervise.network import is_loopback

DEFAULT_HOST = "https://api.swanlab.cn/api"


@dataclass(frozen=True, slots=True)
class Account:
    """`host` is the common start of all addresses, without a slash at the end."""

    host: str
    key: str = field(repr=False)


def find_account(environ: Mapping[str, str] = os.environ) -> Account:
    """The user's account. Raises ConfigError without a key, or if it would be sent unencrypted."""
    wanted = environ.get("SWANLAB_API_HOST", "").strip()
    key = environ.get("SWANLAB_API_KEY", "").strip()
    host = _base(wanted or DEFAULT_HOST)
    if not key:
        machine, key = _from_netrc(environ)
        if not key or (wanted and _netloc(machine) != _netloc(host)):
            login = "export SWANLAB_API_KEY=..., or `swanlab login`"
            raise ConfigError(
                "There is no SwanLab key.",
                got=f"SWANLAB_API_KEY is not set, and SwanLab's netrc has no key for {host}",
                fix=f"{login}; a key does not belong on the command line",
            )
        if not wanted:
            host = _base(machine)
    if not key.isascii() or not key.isalnum():
        what = "The SwanLab key has characters that no key has."
        raise ConfigError(what, got=f"{len(key)} characters")
    return Account(host, key)


def _base(host: str) -> str:
    """The address as SwanLab's clients read it, by default with https and ending in /api."""
    host = _with_scheme(host).rstrip("/")
    parts = urlsplit(host)
    has_more = parts.username or parts.query or parts.fragment
    if parts.scheme not in ("https", "http") or not parts.hostname or has_more:
        fix = f"SWANLAB_API_HOST={DEFAULT_HOST}"
        raise ConfigError("SWANLAB_API_HOST is not an address.", fix=fix)
    if parts.scheme == "http" and not (
        parts.hostname == "localhost" or is_loopback(parts.hostname)
    ):
        raise ConfigError(
            "The key would travel unencrypted.",
            got=f"SWANLAB_API_HOST={host}",
            fix=f"https://{parts.netloc}",
        )
    return host if parts.path else f"{host}/api"


def _with_scheme(host: str) -> str:
    return host if "://" in host else f"https://{host}"


def _netloc(host: str) -> str:
    return urlsplit(_with_scheme(host)).netloc.lower()


def _from_netrc(environ: Mapping[str, str]) -> tuple[str, str]:
    """Address and key from the first netrc that has a key, else two empty strings."""
    root = environ.get("SWANLAB_ROOT") or environ.get("SWANLAB_SAVE_DIR") or "~/.swanlab"
    for path in (Path(".swanlab/.netrc"), Path(root).expanduser() / ".netrc"):
        if not path.is_file():
            continue
        try:
            hosts = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a netrc"
            what = "SwanLab's netrc cannot be read."
            raise ConfigError(what, got=f"{path}: {reason}", fix="swanlab login") from None
        for machine, (_, _, password) in hosts.items():
            if password:
                return machine, password
    return "", ""
