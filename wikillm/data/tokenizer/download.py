"""Fetch Qwen2's tokenizer from ModelScope or a Hugging Face endpoint, in bounded time.

A hub that says nothing for 5 s (name lookup included) is given up, and not asked again by this process. Files go
to the user's cache, where the next search finds them without a hub. HF_HUB_OFFLINE=1, TRANSFORMERS_OFFLINE=1 or
WIKILLM_OFFLINE=1 keep all hubs out.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wikillm.core.log import say
from wikillm.data.fetch.remote import LOOKUP_SECONDS, is_offline
from wikillm.data.tokenizer.tokenizer import load_tokenizer

TOTAL_SECONDS = 60.0
MAX_FILE_BYTES = 64 << 20
FILES = ("tokenizer_config.json", "tokenizer.json")
MODEL = "Qwen/Qwen2-0.5B"

_gone: set[str] = set()  # hubs that failed in this process


@dataclass(frozen=True, slots=True)
class Hub:
    name: str
    url: str  # with {file}


class HubUnreachable(Exception):
    """No hub gave the files; the text says which was asked and what happened."""


def hubs() -> list[Hub]:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return [
        Hub("ModelScope", f"https://modelscope.cn/models/{MODEL}/resolve/master/{{file}}"),
        Hub(f"Hugging Face ({endpoint})", f"{endpoint}/{MODEL}/resolve/main/{{file}}"),
    ]


def fetch_qwen2(target: Path, asked: Sequence[Hub] | None = None) -> str:
    """Download the tokenizer into `target` and return the hub's name. Raises HubUnreachable."""
    if is_offline():
        raise HubUnreachable(
            "hubs are switched off by HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE or WIKILLM_OFFLINE"
        )
    reasons = []
    for hub in asked if asked is not None else hubs():
        if hub.url in _gone:
            reasons.append(f"{hub.name}: did not answer before")
            continue
        say(
            f"tokenizer: asking {hub.name} for {MODEL} (at most {LOOKUP_SECONDS:.0f} s without an answer)"
        )
        try:
            contents = {file: _download(hub.url.format(file=file)) for file in FILES}
            _install(contents, target)
            return f"{hub.name}: {MODEL}"
        except Exception as error:
            _gone.add(hub.url)
            reasons.append(f"{hub.name}: {' '.join(str(error).split()) or type(error).__name__}")
    raise HubUnreachable("\n".join(reasons))


def _install(contents: dict[str, bytes], target: Path) -> None:
    """Put a complete, loadable folder at `target`, whoever else does so at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as staged:
        folder = Path(staged) / "tokenizer"
        folder.mkdir()
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        load_tokenizer(folder)  # an HTML page that says "log in" is no tokenizer
        try:
            folder.rename(target)
        except OSError:
            load_tokenizer(target)  # another process was first


def _download(url: str) -> bytes:
    """The content behind a URL. Raises when nothing is heard for LOOKUP_SECONDS, or after TOTAL_SECONDS."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"not a web address: {url}")
    heard: queue.Queue[bytes | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "wikillm"})
            with urllib.request.urlopen(request, timeout=LOOKUP_SECONDS) as answer:
                while piece := answer.read(1 << 16):
                    heard.put(piece)
            heard.put(None)
        except BaseException as error:
            heard.put(error)

    # A thread, since a name lookup cannot be interrupted: when it hangs, it is left behind.
    threading.Thread(target=work, daemon=True, name="wikillm-hub").start()
    content, end = bytearray(), time.monotonic() + TOTAL_SECONDS
    while True:
        try:
            piece = heard.get(timeout=LOOKUP_SECONDS)
        except queue.Empty:
            piece = TimeoutError()
        if piece is None:
            return bytes(content)
        if isinstance(
            getattr(piece, "reason", piece), TimeoutError
        ):  # the socket's own may come first
            raise TimeoutError(f"no answer within {LOOKUP_SECONDS:.0f} s") from None
        if isinstance(piece, BaseException):
            raise piece
        content += piece
        if len(content) > MAX_FILE_BYTES or time.monotonic() > end:
            raise TimeoutError(f"too slow or too large: {len(content)} bytes so far")
