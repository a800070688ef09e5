"""Checks that the servers for tokenizers, models and tracking respond. Any HTTP response counts."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial

from wikillm.doctor.checks import Check, Verdict, ok, skip, warn
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.needs import Needs
from wikillm.doctor.probe import run_in_time

SECONDS = 5.0


def gather_connectivity(addresses: Mapping[str, str]) -> dict[str, str]:
    """Server name -> "" if it answered, else why not. All servers are asked at once."""
    asks = {name: partial(_reach, address) for name, address in addresses.items()}
    found, errors = run_in_time(asks, SECONDS + 1)
    return {name: errors.get(name) or found[name] for name in addresses}


def _reach(address: str) -> str:
    if not address.startswith(("https://", "http://")):
        return "not a web address"
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "wikillm"})
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "strerror", None) or error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _reach_check(name: str, about: str, why: str, fix: str) -> Check:
    def look(facts: NodeFacts, needs: Needs) -> Verdict:
        if name not in facts.connectivity:
            return skip("not asked: this run is offline")
        error = facts.connectivity[name]
        return warn(error, why, fix) if error else ok("answers")

    return Check(f"reach-{name}", "connectivity", about, look, "connectivity")


_LOCAL = "data.tokenizer=FOLDER, data.path=FILE"
_NOT_NEEDED = "not needed where files are local"
HUGGINGFACE = _reach_check(
    "huggingface",
    "Hugging Face answers.",
    "tokenizers and models may come from it",
    f"set HF_ENDPOINT, or use local files: {_LOCAL}",
)
MIRROR = _reach_check(
    "hf-mirror", "The mirror of Hugging Face (HF_ENDPOINT) answers.", _NOT_NEEDED, _LOCAL
)
MODELSCOPE = _reach_check("modelscope", "ModelScope answers.", _NOT_NEEDED, _LOCAL)
SWANLAB = _reach_check(
    "swanlab",
    "SwanLab answers.",
    "tracking stays offline",
    "observe.swanlab.mode=offline, and `swanlab sync` later",
)
