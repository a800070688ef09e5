"""All sections of a node at once, each with its own time: one that hangs (a dead NFS mount) is left behind and named."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from wikillm.config.environment_variables import NAMES
from wikillm.core.log import logger
from wikillm.doctor.facts import NodeFacts
from wikillm.doctor.gather.compiler import gather_compiler
from wikillm.doctor.gather.disk import gather_disk
from wikillm.doctor.gather.gpus import gather_gpus
from wikillm.doctor.gather.host import gather_host
from wikillm.doctor.gather.hubs import gather_hubs
from wikillm.doctor.gather.network import gather_network
from wikillm.doctor.gather.software import gather_software
from wikillm.doctor.needs import Request
from wikillm.observe.redact import environment_secrets, names_a_secret, redact_text

SECONDS = 15.0
_READ = (
    "NCCL_", "GLOO_", "TORCH_", "CUDA_", "HF_", "TRANSFORMERS_", "SLURM_", "OMP_", "DS_", "UCX_", "PYTORCH_",
    "MASTER_", "WANDB_", "SWANLAB_",
)  # fmt: skip
_NAMES = (
    *NAMES,
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip


def gather(request: Request, seconds: float = SECONDS) -> NodeFacts:
    """Facts about this machine, after `seconds` at the latest."""
    sections: dict[str, Callable[[], Any]] = {
        "software": gather_software,
        "gpus": gather_gpus,
        "host": gather_host,
        "compiler": gather_compiler,
        "disk": lambda: gather_disk(request),
        "network": lambda: gather_network(request),
        "hubs": lambda: gather_hubs(request.hubs),
        "environment": lambda: relevant_environment(os.environ),
    }
    found, errors = run_bounded(sections, seconds)
    return NodeFacts(**found, errors=errors)


def run_bounded(
    sections: Mapping[str, Callable[[], Any]], seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """(results, errors) by name, one thread each; what is not done in time is an error."""
    answers: queue.Queue[tuple[str, Any, str]] = queue.Queue()

    def work(name: str, function: Callable[[], Any]) -> None:
        try:
            answers.put((name, function(), ""))
        except Exception as error:
            logger.warning("gathering %s", name, exc_info=error)
            answers.put((name, None, f"{type(error).__name__}: {error}"))

    for name, function in sections.items():
        threading.Thread(
            target=work, args=(name, function), daemon=True, name=f"doctor-{name}"
        ).start()
    found: dict[str, Any] = {}
    errors = dict.fromkeys(sections, f"no answer within {seconds:.0f} s")
    end = time.monotonic() + seconds
    while errors and len(found) < len(sections):
        try:
            name, value, error = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        found[name] = value
        if error:
            errors[name] = error
        else:
            del errors[name]
    return found, errors


def relevant_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a run reads of the environment, without secrets."""
    secrets = environment_secrets(environ)
    names = (name for name in sorted(environ) if name.startswith(_READ) or name in _NAMES)
    return {name: redact_text(environ[name], secrets) for name in names if not names_a_secret(name)}
