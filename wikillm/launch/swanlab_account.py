"""Where SwanLab is and who asks: the API's address and the key, from the environment or SwanLab's own netrc.

The key never stands on a command line or in a configuration, and is never printed. SwanLab's netrc (`swanlab login`
writes it) lies in .swanlab/ of this folder, else in $SWANLAB_ROOT, $SWANLAB_SAVE_DIR or ~/.swanlab; it is a netrc whose
machine is the address and whose password is the key. A key in it is used for that address only.
"""

from __future__ import annotations

import ipaddress
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from wikillm.core.errors import ConfigError

DEFAULT_HOST = "https://api.swanlab.cn/api"


@dataclass(frozen=True, slots=True)
class Account:
    """`host` is the base of all addresses, without a slash at its end; `key` does not show in a repr."""

    host: str
    key: str = field(repr=False)


def find_account(environ: Mapping[str, str] = os.environ) -> Account:
    """Raises ConfigError without a key, and for an address that would send it unencrypted."""
    wanted, key = (
        environ.get("SWANLAB_API_HOST", "").strip(),
        environ.get("SWANLAB_API_KEY", "").strip(),
    )
    host = _base(wanted or DEFAULT_HOST)
    if not key:
        known = _from_netrc(environ)
        if known is None or (wanted and _place(known[0]) != _place(host)):
            raise ConfigError(
                "There is no SwanLab key.",
                got=f"SWANLAB_API_KEY is not set, and SwanLab's netrc has none for {host}",
                fix="export SWANLAB_API_KEY=..., or `swanlab login`; a key does not belong on the command line",
            )
        host, key = (host if wanted else _base(known[0])), known[1]
    if not key.isascii() or not key.isalnum():
        raise ConfigError(
            "The SwanLab key has characters that no key has.", got=f"{len(key)} characters"
        )
    return Account(host, key)


def _base(host: str) -> str:
    """The address as SwanLab's clients read it: https unless said otherwise, ending in /api."""
    host = (host if "://" in host else f"https://{host}").rstrip("/")
    parts = urlsplit(host)
    if (
        parts.scheme not in ("https", "http")
        or not parts.hostname
        or parts.username
        or parts.query
        or parts.fragment
    ):
        raise ConfigError(
            "SWANLAB_API_HOST is not an address.", fix=f"SWANLAB_API_HOST={DEFAULT_HOST}"
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ConfigError(
            "The key would travel unencrypted.",
            got=f"SWANLAB_API_HOST={host}",
            fix=f"https://{parts.netloc}",
        )
    return host if parts.path else f"{host}/api"


def _place(host: str) -> str:
    return urlsplit(host if "://" in host else f"https://{host}").netloc.lower()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _from_netrc(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """(address, key) of the first file that has one; a file that cannot be read is said, not passed over."""
    root = environ.get("SWANLAB_ROOT") or environ.get("SWANLAB_SAVE_DIR") or "~/.swanlab"
    for path in (Path(".swanlab/.netrc"), Path(root).expanduser() / ".netrc"):
        if not path.is_file():
            continue
        try:
            hosts = netrc.netrc(path).hosts
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a netrc"
            raise ConfigError(
                "SwanLab's netrc cannot be read.", got=f"{path}: {reason}", fix="swanlab login"
            ) from None
        for machine, (_, _, password) in hosts.items():
            if password:
                return machine, password
    return None
