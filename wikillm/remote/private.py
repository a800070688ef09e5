"""Names of files that hold keys and passwords: they are copied to no other machine."""

from __future__ import annotations

import fnmatch

PRIVATE = (
    "netrc", "_netrc", "*.netrc", "*.pem", "*.p12", "*.pfx", "*.ppk", "id_*", "*.kdbx", ".git-credentials", ".pgpass", ".secret",
)  # fmt: skip
"""Shell patterns of file names, in any case. What ends with .py is code: `id_map.py`."""


def is_private(name: str) -> bool:
    """Whether a file of this name stays here."""
    lower = name.lower()
    return not lower.endswith(".py") and any(
        fnmatch.fnmatchcase(lower, pattern) for pattern in PRIVATE
    )
