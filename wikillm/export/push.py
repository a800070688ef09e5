"""Push an exported folder to ModelScope or the Hugging Face Hub, with the hub's own client.

The client reads its token from the environment (MODELSCOPE_API_TOKEN, HF_TOKEN) or from its login.
WikiLLM neither takes a token as an argument nor stores a token. MODELSCOPE_ENDPOINT or
MODELSCOPE_DOMAIN, and HF_ENDPOINT, choose another site. The folder is only read, so a failed push
does not change it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import yaml

from wikillm.core.errors import CheckpointError, ConfigError, MachineError
from wikillm.core.files import files_below, sha256_file
from wikillm.data.fetch.datasets import modelscope_client
from wikillm.export.card import UNKNOWN
from wikillm.export.target_folder import MARK
from wikillm.observe.redact import environment_secrets, redact_text

MESSAGE = "Upload a model exported by WikiLLM"
EDITABLE = ("README.md", "LICENSE*", "NOTICE*")
"""Files that a user may add to an export, or change, before it is pushed."""


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A model repository. `str(repository)` is its form on the command line."""

    hub: str
    name: str

    def __str__(self) -> str:
        return f"{self.hub}:{self.name}"


def parse_repository(text: str) -> HubRepository:
    """`modelscope:ORG/NAME` or `hf:ORG/NAME`. Raises ConfigError for anything else."""
    if found := re.fullmatch(r"(modelscope|hf):([\w.\-]+/[\w.\-]+)", text):
        return HubRepository(found[1], found[2])
    raise ConfigError(
        "--push must name a repository on a hub.",
        got=redact_text(text[:200], environment_secrets()),
        fix="--push modelscope:ORG/NAME or --push hf:ORG/NAME",
    )


def check_token(repository: HubRepository) -> None:
    """Raises ConfigError if the hub's client has no token. Called before the export starts."""
    if repository.hub == "hf":
        from huggingface_hub import get_token

        has_token = bool(get_token())
        fix = "HF_TOKEN=... in the environment, or `hf auth login`"
    else:
        has_token = bool(modelscope_client()._config.token)
        fix = "MODELSCOPE_API_TOKEN=... in the environment, or `modelscope login`"
    if not has_token:
        what = f"No token for {repository} was found."
        raise ConfigError(what, got="neither in the environment nor saved by a login", fix=fix)


def check_export(folder: Path) -> list[str]:
    """Names of the files to push: those that the export wrote, and those that `EDITABLE` allows.

    Raises CheckpointError if a file is missing, was changed since the export, or was added.
    """
    try:
        listed = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        what = f"{folder} is not an exported folder."
        raise CheckpointError(what, got=repr(error), fix="wikillm export RUN --to DIR") from None
    present = {path.relative_to(folder).as_posix() for path in files_below(folder)}
    wrong = [f"{name} is missing" for name in sorted({*listed} - present)]
    for name in sorted(present - {MARK}):
        if any(fnmatch(name, pattern) for pattern in EDITABLE):
            continue
        if name not in listed:
            wrong.append(f"{name} was added")
        elif sha256_file(folder / name) != listed[name]["sha256"]:
            wrong.append(f"{name} was changed")
    if wrong:
        raise CheckpointError(
            f"{folder} was changed since the export, so it is not pushed.",
            got="\n".join(wrong[:10]),
            fix="export again with --to, or move other files away",
        )
    return sorted(present)


def push_folder(
    folder: Path,
    repository: HubRepository,
    *,
    private: bool = False,
    update: bool = False,
) -> str:
    """Create the repository and upload the files of the export. Returns the URL of its page.

    Args:
        private: create a private repository.
        update: if the repository exists, add a commit with the files to it.

    Raises:
        CheckpointError: see `check_export`.
        ConfigError: no token, a refused token, no permission, or an existing repository.
        MachineError: the hub cannot be reached, or failed.
    """
    names = check_export(folder)
    check_token(repository)
    push = _push_hf if repository.hub == "hf" else _push_modelscope
    again = shlex.join(["wikillm", "export", str(folder), "--push", str(repository), "--update"])
    again += " --private" if private else ""
    with _clear_errors(folder, repository, again), contextlib.redirect_stdout(io.StringIO()):
        return push(folder, repository.name, names, private, update)


def _licence(folder: Path) -> str:
    """The licence in the card's metadata block, which may have been edited since the export."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        _, block, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        return str(yaml.safe_load(block).get("license") or UNKNOWN)
    return UNKNOWN


def _push_hf(folder: Path, name: str, names: list[str], private: bool, update: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    url = api.create_repo(name, private=private, exist_ok=update)
    api.upload_folder(
        repo_id=name, folder_path=folder, commit_message=MESSAGE, allow_patterns=names
    )
    return str(url)


def _push_modelscope(folder: Path, name: str, names: list[str], private: bool, update: bool) -> str:
    """Push with ModelScope's client, which would set Apache-2.0 if no licence were given."""
    from modelscope_hub.errors import is_repo_exists_error

    api = modelscope_client()
    try:
        visibility = "private" if private else "public"
        api.create_repo(name, "model", visibility=visibility, license=_licence(folder))
    except Exception as error:
        if not (update and is_repo_exists_error(error)):
            raise
    api.upload_folder(
        name,
        "model",
        folder,
        commit_message=MESSAGE,
        allow_patterns=names,
        use_cache=False,  # the cache would be a file in the folder
        disable_tqdm=True,
    )
    return f"{api._config.endpoint}/models/{name}"


@contextlib.contextmanager
def _clear_errors(folder: Path, repository: HubRepository, again: str) -> Iterator[None]:
    """Convert a client's exception to an error that a user can act on. `again`: the command that
    repeats the push."""
    try:
        yield
    except (ConfigError, CheckpointError, MachineError):
        raise
    except Exception as error:  # raised by the client or by its HTTP library
        raise _refusal(error, folder, repository, again) from None


def _refusal(
    error: Exception, folder: Path, repository: HubRepository, again: str
) -> ConfigError | MachineError:
    status = next(filter(None, map(_status, _causes(error))), None)
    lines = redact_text(str(error), environment_secrets()).strip().splitlines()
    got = "\n".join([*lines[:3], f"the export stays in {folder}"])
    login = "hf auth login" if repository.hub == "hf" else "modelscope login"
    fixes = {
        401: f"{login}, then {again}",
        403: "a token with write permission, and an organisation that you belong to",
        409: f"another name, or {again} to add a commit to it",
    }
    if status in fixes:
        what = f"The hub refused the push to {repository} (HTTP {status})."
        return ConfigError(what, got=got, fix=fixes[status])
    what = f"The push to {repository} failed."
    return MachineError(what, got=got, fix=f"check the network, then {again}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and the chain of exceptions that caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status of a client's error; 409 if the repository exists."""
    if type(error).__name__ == "AlreadyExistsError":
        return 409
    found = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    return found if isinstance(found, int) else getattr(response, "status_code", None)
