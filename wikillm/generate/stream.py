"""Stream the text of a completion while it is generated, in pieces of whole characters.

A hanzi is often split over several byte tokens, and each of them decodes to U+FFFD on its own. So
text is held back until its last character is complete. Bytes that never form a character are left
out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.generation.streamers import BaseStreamer

from wikillm.generate.complete import Tokenizer

BROKEN = "\ufffd"


class TextPieces(BaseStreamer):
    """Calls `write` with each new piece of text, without the prompt and special tokens.

    `text` is the text written so far, `tokens` the number of generated tokens.
    """

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object]) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._ids: list[int] = []
        self._is_prompt = True
        self.text = ""

    @property
    def tokens(self) -> int:
        return len(self._ids)

    def put(self, value: Any) -> None:
        """Called by `generate` first with the prompt, (1, T), then with each token, (1,)."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += value.flatten().tolist()
        # Decode all ids again, because the text of a token depends on the tokens before it.
        decoded = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        whole = decoded.rstrip(BROKEN).replace(BROKEN, "")
        piece = whole[len(self.text) :]
        if piece:
            self.text = whole
            self._write(piece)

    def end(self) -> None:
        """Drop the bytes that are still held back: they do not form a character."""
