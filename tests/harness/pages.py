"""The shell commands that the pages of the documentation show."""

from __future__ import annotations

import re
import shlex

_BLOCK = re.compile(r"^```(?:sh|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Commands of the shell blocks; continued lines and open quotes joined, comments removed."""
    lines = []
    for block in _BLOCK.findall(text):
        open_quote = ""
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = open_quote + re.sub(r"(^|\s+)#.*", "", line).strip()
            try:
                shlex.split(found)
            except ValueError:
                open_quote = found + "\n"
                continue
            open_quote = ""
            if found:
                lines.append(found)
    return lines


def words_of(command: str) -> list[str]:
    """Its words, without the variables that it sets for itself."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words
