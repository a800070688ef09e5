"""Environment variables that are forwarded to other machines, in a file of mode 0600.

The file has DeepSpeed's format, NAME=value on each line, so DeepSpeed's launcher reads it too. Only
the names of variables appear on command lines and in output, never their values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from wikillm.core.errors import ConfigError

FILE_NAME = ".deepspeed_env"
_NAMES = frozenset(
    {
        "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "MODELSCOPE_CACHE",
        "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR",
        "CUDA_HOME", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY",
        "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
    }
)  # fmt: skip
_PREFIXES = ("SWANLAB_", "WIKILLM_", "NCCL_", "GLOO_", "TORCH_NCCL_")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_forwarded(name: str) -> bool:
    """Whether a variable of this name is forwarded."""
    return bool(_NAME.fullmatch(name)) and (name in _NAMES or name.startswith(_PREFIXES))


def forwarded_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables to forward, by name. Raises ConfigError for values with a line break."""
    found = {name: environ[name] for name in sorted(environ) if is_forwarded(name)}
    broken = [name for name, value in found.items() if "\n" in value or "\0" in value]
    if broken:
        raise ConfigError(
            "A variable with a line break cannot be forwarded.",
            got=", ".join(broken),
            fix=f"unset {' '.join(broken)}",
        )
    return found


def write_environment_file(path: Path, variables: Mapping[str, str]) -> None:
    """Write NAME=value lines to a new file that only its owner can read. Replaces an older file."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in variables.items())


READ_IT = f'while IFS= read -r line; do export "${{line?}}"; done <{FILE_NAME}'
"""Shell text that exports the file's variables, whatever characters the values have."""
