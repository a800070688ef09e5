"""Data sets of Hugging Face and ModelScope: their files at one revision, downloaded by the hubs' own clients.

    hf://ORG/NAME[/CONFIG][@REVISION][:SPLIT]        modelscope://ORG/NAME[@REVISION][:SPLIT]

A data set is a repository of files, and the files of a split are sources like any other: the same shards, the same
bytes, and a stopped build goes on. Hugging Face's branch is resolved to its commit, which stands in the manifest;
`datasets` says which files make up a split. ModelScope names no commit for a branch: there the revision as it was
named is recorded, each file is compared with the listed sha256, and a split's files are those with its name in their
path. Files lie in the hubs' own caches (HF_HOME, MODELSCOPE_CACHE). Where a hub cannot be reached, what it said the
last time and the files that are here are used, and the log says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError, DataError, MachineError, did_you_mean
from wikillm.core.files import write_json
from wikillm.core.log import say, warn
from wikillm.data.fetch.cache import Cache, Fetched, key_of
from wikillm.data.fetch.remote import LOOKUP_SECONDS, is_offline
from wikillm.data.sources.locate import is_named_like_a_corpus

SCHEMES = ("hf", "modelscope")
_ENTRY = re.compile(
    r"(?P<scheme>hf|modelscope)://(?P<org>[\w.-]+)/(?P<name>[\w.-]+)(?:/(?P<config>[\w.-]+))?"
    r"(?:@(?P<revision>[^:@]+))?(?::(?P<split>[\w.-]+))?"
)
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_HOW = {
    "hf": "a mirror: export HF_ENDPOINT=https://hf-mirror.com\na data set that needs an account: export HF_TOKEN=...\n"
    "or on another machine: hf download {repo} --repo-type dataset --local-dir FOLDER, then data.path=FOLDER",
    "modelscope": "another address: export MODELSCOPE_ENDPOINT=https://...\n"
    "a data set that needs an account: export MODELSCOPE_API_TOKEN=...\n"
    "or on another machine: modelscope download --dataset {repo} --local_dir FOLDER, then data.path=FOLDER",
}


class _Silent(Exception):
    """The hub gave no answer that would settle it."""


@dataclass(frozen=True, slots=True)
class DatasetAddress:
    """One entry of `data.path` that names a data set."""

    text: str
    scheme: str
    repo: str
    config: str | None
    revision: str | None
    split: str

    def refused(self, what: str, got: str, fix: str | None = None) -> DataError:
        return DataError(
            what, got=f"{self.text}: {got}", fix=fix or _HOW[self.scheme].format(repo=self.repo)
        )


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a split. `revision`: the commit (Hugging Face), or the branch or tag (ModelScope)."""

    revision: str
    files: tuple[tuple[str, str], ...]  # (path in the repository, sha256 or nothing)


def parse(text: str) -> DatasetAddress:
    """Raises ConfigError for what is no address of a data set."""
    found = _ENTRY.fullmatch(text)
    if found is None or (found["scheme"] == "modelscope" and found["config"]):
        scheme = "modelscope" if text.startswith("modelscope") else "hf"
        config = "[/CONFIG]" if scheme == "hf" else ""
        fix = f"{scheme}://ORG/NAME{config}[@REVISION][:SPLIT]"
        raise ConfigError("This is no address of a data set.", got=text, fix=fix)
    repo = f"{found['org']}/{found['name']}"
    return DatasetAddress(
        text, found["scheme"], repo, found["config"], found["revision"], found["split"] or "train"
    )


def fetch(text: str, cache: Cache, *, is_main: bool = True) -> list[Fetched]:
    """The files of a data set's split, here. One process asks the hub, the others take its answer. (all ranks)"""
    entry = parse(text)
    hub = _HuggingFace(entry) if entry.scheme == "hf" else _ModelScope(entry)
    with cache.exclusive(is_main, text) as asked:
        listing, is_local = _listing(entry, hub, cache, asked)
        found = []
        for path, sha256 in listing.files:
            try:
                here = hub.download(listing.revision, path, sha256, is_local)
            except _Silent as error:
                raise entry.refused(
                    f"A file of a data set cannot be fetched: {path}.", str(error)
                ) from None
            found.append(Fetched(here, f"{entry.scheme}://{entry.repo}/{path}", listing.revision))
    if is_main:
        say(f"data: {entry.repo} at {listing.revision[:12]}, {entry.split}, {len(found)} files")
    return found


def _listing(
    entry: DatasetAddress, hub: _HuggingFace | _ModelScope, cache: Cache, asked: float
) -> tuple[Listing, bool]:
    """What the hub says; what it said the last time, and True, when it says nothing."""
    memory = cache.folder / "hub" / f"{key_of(entry.text)}.json"
    known: Listing | None = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads(memory.read_text(encoding="utf-8"))
        known = Listing(value["revision"], tuple((path, sha256) for path, sha256 in value["files"]))
        if memory.stat().st_mtime >= asked:
            return known, bool(
                value.get("is_silent")
            )  # another rank has asked while this one waited
    try:
        if is_offline():
            raise _Silent(
                "hubs are switched off by HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE or WIKILLM_OFFLINE"
            )
        listing = hub.listing()
    except _Silent as error:
        if known is None:
            raise entry.refused("A data set's hub cannot be reached.", str(error)) from None
        warn(f"{entry.text}: {error}; revision {known.revision[:12]} is used, as at the last time")
        with suppress(
            OSError
        ):  # for the ranks that wait: each would ask in its turn, until nothing is heard
            write_json(memory, {**asdict(known), "is_silent": True})
        return known, True
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, asdict(listing))
    return listing, False


class _HuggingFace:
    def __init__(self, entry: DatasetAddress) -> None:
        self._entry = entry
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def listing(self) -> Listing:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        entry = self._entry
        try:
            info = HfApi().dataset_info(entry.repo, revision=entry.revision, timeout=LOOKUP_SECONDS)
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise entry.refused(
                "There is no such data set, or it may not be read.", _first_line(error)
            ) from None
        except Exception as error:  # of the HTTP library, whichever it is
            raise _Silent(_first_line(error)) from None
        revision = str(info.sha)
        splits = self._splits(revision)
        if entry.split not in splits:
            raise _no_split(entry, splits)
        start = f"hf://datasets/{entry.repo}@{revision}/"
        outside = [url for url in splits[entry.split] if not url.startswith(start)]
        if outside:
            raise entry.refused("A data set names files outside its repository.", outside[0])
        return Listing(
            revision, tuple((url.removeprefix(start), "") for url in splits[entry.split])
        )

    def _splits(self, revision: str) -> dict[str, list[str]]:
        from datasets import load_dataset_builder

        entry = self._entry
        try:
            builder = load_dataset_builder(entry.repo, entry.config, revision=revision)
        except (ConnectionError, TimeoutError) as error:
            raise _Silent(_first_line(error)) from None
        except (
            ValueError,
            FileNotFoundError,
            RuntimeError,
        ) as error:  # no such config, no data, a script
            fix = f"hf://{entry.repo}/CONFIG, or files of it by hand: data.path=FOLDER"
            raise entry.refused(
                "`datasets` cannot say what the files of this data set are.", str(error), fix
            ) from None
        except Exception as error:  # of the HTTP library: a status, a cut connection
            raise _Silent(_first_line(error)) from None
        return {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}

    def download(self, revision: str, path: str, sha256: str, is_local: bool) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            found = hf_hub_download(
                self._entry.repo,
                path,
                repo_type="dataset",
                revision=revision,
                local_files_only=is_local or is_offline(),
            )
        except Exception as error:
            raise _Silent(_first_line(error)) from None
        return Path(found)


class _ModelScope:
    def __init__(self, entry: DatasetAddress) -> None:
        self._entry = entry

    def _api(self) -> Any:
        try:
            from modelscope_hub.api import HubApi
        except ImportError as error:
            fix = "pip install -U 'modelscope>=1.40'"
            raise MachineError(
                "modelscope:// needs a newer modelscope.", got=str(error), fix=fix
            ) from None
        return HubApi()

    def listing(self) -> Listing:
        entry, api = self._entry, self._api()
        from modelscope_hub.errors import NotExistError, PermissionDeniedError

        revision = entry.revision or "master"
        try:
            files = api.list_repo_files(entry.repo, "dataset", revision=revision)
        except (NotExistError, PermissionDeniedError) as error:
            raise entry.refused(
                "There is no such data set, or it may not be read.", _first_line(error)
            ) from None
        except Exception as error:
            raise _Silent(_first_line(error)) from None
        digests = {file.path: file.sha256 or "" for file in files if not file.is_dir}
        splits = splits_of(digests)
        if entry.split not in splits:
            raise _no_split(entry, splits)
        return Listing(revision, tuple((path, digests[path]) for path in splits[entry.split]))

    def download(self, revision: str, path: str, sha256: str, is_local: bool) -> Path:
        try:
            found = self._api().download_file(
                self._entry.repo,
                "dataset",
                path,
                revision=revision,
                expected_sha256=sha256 or None,
                local_files_only=is_local or is_offline(),
            )
        except MachineError:
            raise
        except Exception as error:
            raise _Silent(_first_line(error)) from None
        return Path(found)


def splits_of(paths: Iterable[str]) -> dict[str, list[str]]:
    """Files named like a corpus by the split that stands in their path as a word; without any, all are train's."""
    data = sorted(path for path in paths if is_named_like_a_corpus(path, text=True))
    found: dict[str, list[str]] = {}
    for path in data:
        words = re.split(r"[/_.\-]+", path.lower())
        split = next((name for name in _SPLITS if name in words), None)
        found.setdefault(split or "", []).append(path)
    if set(found) == {""}:
        return {"train": found[""]}
    found.pop("", None)  # beside named splits: descriptions, statistics
    return found


def _no_split(entry: DatasetAddress, splits: Iterable[str]) -> DataError:
    names = sorted(splits)
    near = did_you_mean(entry.split, names) or (names[0] if names else None)
    got = f"it has {', '.join(names)}" if names else "no file of it is named like a corpus"
    base = entry.text.removesuffix(f":{entry.split}")
    return entry.refused(
        f"The data set has no split {entry.split}.", got, f"{base}:{near}" if near else None
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
