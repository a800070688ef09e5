"""Checks whether the servers for tokenizers, models and tracking respond, with any HTTP status."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request

from wikillm.data.fetch.remote import is_offline
from wikillm.doctor.checks import Finding, check, ok, skip, warn
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import in_time
from wikillm.observe.redact import redact_text

SECONDS = 5.0


def why_no_answer(address: str) -> str:
    """Why no server answers at `address`; "" if a server answers."""
    error = in_time({address: lambda: _ask(address)}, SECONDS + 1).get(address)
    return f"no answer within {SECONDS + 1:.0f} s" if error is None else redact_text(error)


def _ask(address: str) -> str:
    if not address.startswith(("https://", "http://")):
        return "not a web address"
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "wikillm"})
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or error.reason)
    except http.client.InvalidURL:
        return "not a web address"  # its text may contain a password
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _asked(address: str, why: str, fix: str) -> Finding:
    if is_offline():
        return skip("this run is offline")
    error = why_no_answer(address)
    return warn(error, why, fix) if error else ok("answers")


_LOCAL = "data.tokenizer=FOLDER, data.path=FILE"
_NOT_NEEDED = "not needed where files are local"


@check("connectivity")
def reach_huggingface(needs: Needs) -> Finding:
    """Hugging Face answers."""
    fix = f"set HF_ENDPOINT, or use local files: {_LOCAL}"
    return _asked("https://huggingface.co", "tokenizers and models may come from it", fix)


@check("connectivity")
def reach_hf_mirror(needs: Needs) -> Finding:
    """The mirror of Hugging Face (HF_ENDPOINT) answers."""
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://hf-mirror.com"
    return _asked(mirror, _NOT_NEEDED, _LOCAL)


@check("connectivity")
def reach_modelscope(needs: Needs) -> Finding:
    """ModelScope answers."""
    return _asked("https://modelscope.cn", _NOT_NEEDED, _LOCAL)


@check("connectivity")
def reach_swanlab(needs: Needs) -> Finding:
    """SwanLab answers."""
    address = os.environ.get("SWANLAB_API_HOST", "https://api.swanlab.cn/api")
    fix = "observe.swanlab.mode=offline, and `swanlab sync` later"
    return _asked(address, "tracking stays offline", fix)
