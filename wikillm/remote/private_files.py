"""Recognizes files with keys and passwords by name: they are not copied to other machines."""

from __future__ import annotations

import fnmatch
import re

PRIVATE = (
    "netrc", "_netrc", "*.netrc", "*.pem", "*.p12", "*.pfx", "*.ppk", "id_*", "*.kdbx",
    ".git-credentials", ".pgpass", ".secret",
)  # fmt: skip
"""Shell patterns of file names, in any case. Names that end with .py are code: `id_map.py`."""


def in_any_case(pattern: str) -> str:
    """The pattern for tools that distinguish upper and lower case: `id_*` -> `[iI][dD]_*`."""
    return re.sub("[a-z]", lambda found: f"[{found[0]}{found[0].upper()}]", pattern)


def is_private(name: str) -> bool:
    """Whether a file of this name is never copied."""
    lower = name.lower()
    is_code = lower.endswith(".py")
    return not is_code and any(fnmatch.fnmatchcase(lower, pattern) for pattern in PRIVATE)
