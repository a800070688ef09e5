"""Download Qwen2's tokenizer from ModelScope or a Hugging Face endpoint, in bounded time.

If a source sends nothing for 5 s (name lookup included), the download from it fails, and this
process does not try it again. The files go to the user's cache, where the next search finds them.
HF_HUB_OFFLINE=1, TRANSFORMERS_OFFLINE=1 and WIKILLM_OFFLINE=1 forbid all downloads.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from wikillm.core.log import say
from wikillm.data.fetch.remote import LOOKUP_SECONDS, is_offline
from wikillm.data.tokenizer.tokenizer import load_tokenizer

TOTAL_SECONDS = 60.0
MAX_FILE_BYTES = 64 << 20
FILES = ("tokenizer_config.json", "tokenizer.json")
MODEL = "Qwen/Qwen2-0.5B"

_failed: set[str] = set()  # URLs of sources that failed in this process


class DownloadFailed(Exception):
    """No source sent the files. The message has the reason for each source."""


def _sources() -> dict[str, str]:
    """The address of each source, in which {file} stands for the file name."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    return {
        "ModelScope": f"https://modelscope.cn/models/{MODEL}/resolve/master/{{file}}",
        f"Hugging Face ({endpoint})": f"{endpoint}/{MODEL}/resolve/main/{{file}}",
    }


def download_qwen2(target: Path) -> str:
    """Download the tokenizer into `target`; return the name of the source and the model.

    Raises DownloadFailed.
    """
    if is_offline():
        raise DownloadFailed(
            "downloads are switched off by HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE or WIKILLM_OFFLINE"
        )
    reasons = []
    for name, url in _sources().items():
        if url in _failed:
            reasons.append(f"{name}: it failed before in this process")
            continue
        wait = f"at most {LOOKUP_SECONDS:.0f} s without an answer"
        say(f"tokenizer: asking {name} for {MODEL} ({wait})")
        try:
            contents = {file: _download(url.format(file=file)) for file in FILES}
            _install(contents, target)
            return f"{name}: {MODEL}"
        except Exception as error:
            _failed.add(url)
            why = " ".join(str(error).split()) or type(error).__name__
            reasons.append(f"{name}: {why}")
    raise DownloadFailed("\n".join(reasons))


def _install(contents: dict[str, bytes], target: Path) -> None:
    """Write a complete folder, load it as a check, and rename it to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as staged:
        folder = Path(staged) / "tokenizer"
        folder.mkdir()
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        load_tokenizer(folder)  # refuses an HTML login page
        try:
            folder.rename(target)
        except OSError:
            load_tokenizer(target)  # another process was first


def _download(url: str) -> bytes:
    """The content of a URL. Raises after LOOKUP_SECONDS without data, or after TOTAL_SECONDS."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"not a web address: {url}")
    received: queue.Queue[bytes | BaseException | None] = queue.Queue()

    def work() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "wikillm"})
            with urllib.request.urlopen(request, timeout=LOOKUP_SECONDS) as answer:
                while piece := answer.read(1 << 16):
                    received.put(piece)
            received.put(None)
        except BaseException as error:
            received.put(error)

    # A name lookup cannot be interrupted, so it runs in a thread that is abandoned if it hangs.
    threading.Thread(target=work, daemon=True, name="wikillm-download").start()
    content = bytearray()
    end = time.monotonic() + TOTAL_SECONDS
    while True:
        try:
            piece = received.get(timeout=LOOKUP_SECONDS)
        except queue.Empty:
            piece = TimeoutError()
        if piece is None:
            return bytes(content)
        # The socket's own timeout may come first, wrapped in a URLError.
        if isinstance(getattr(piece, "reason", piece), TimeoutError):
            raise TimeoutError(f"no answer within {LOOKUP_SECONDS:.0f} s") from None
        if isinstance(piece, BaseException):
            raise piece
        content += piece
        if len(content) > MAX_FILE_BYTES or time.monotonic() > end:
            raise TimeoutError(f"too slow or too large: {len(content)} bytes so far")
