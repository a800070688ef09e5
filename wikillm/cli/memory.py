"""An amount of memory on the command line: `--gpu-memory 24GiB`."""

from __future__ import annotations

import re

from wikillm.core.errors import ConfigError
from wikillm.core.units import parse_size

MIB = 2**20


def memory_argument(text: str | None, flag: str) -> int | None:
    """Bytes of a machine's memory. A number without a unit is refused: 24 is 24 bytes to one reader and 24 GB to another."""
    if text is None:
        return None
    found = re.fullmatch(
        r"\s*([0-9][0-9_]*(?:[.][0-9]+)?(?:e[+-]?[0-9]{1,2})?)\s*(|g|gi|gig|m|mi)\s*",
        text,
        re.IGNORECASE,
    )
    if found and float(found[1].replace("_", "")) > 0:
        what = f"{flag} {text.strip()} has {'no unit' if not found[2] else 'an unknown unit'}."
        unit = "M" if found[2].lower().startswith("m") else "G"
        raise ConfigError(
            what,
            got=repr(text),
            fix=f"{flag} {found[1]}{unit}iB (or {found[1]}{unit}B, which is less)",
        )
    try:
        size = parse_size(text)
    except ValueError:
        raise ConfigError(
            f"{flag} is not an amount of memory.", got=repr(text), fix=f"{flag} 24GiB"
        ) from None
    if size < MIB:
        raise ConfigError(f"{flag} is less than 1 MiB.", got=repr(text), fix=f"{flag} 24GiB")
    return size
