"""Do the hubs answer? All at once, each given a few seconds; any HTTP answer counts, also a refusal."""

from __future__ import annotations

import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

SECONDS = 5.0


def gather_hubs(addresses: Mapping[str, str]) -> dict[str, str]:
    """name -> "" for one that answered, else why not. A name lookup that hangs is left behind in its thread."""
    answers: queue.Queue[tuple[str, str]] = queue.Queue()
    for name, address in addresses.items():
        threading.Thread(
            target=lambda n=name, a=address: answers.put((n, _reach(a))), daemon=True
        ).start()
    found = dict.fromkeys(addresses, f"no answer within {SECONDS:.0f} s")
    end = time.monotonic() + SECONDS + 1
    for _ in addresses:
        try:
            name, error = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        found[name] = error
    return found


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
