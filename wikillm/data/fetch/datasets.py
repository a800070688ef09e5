"""Fetch data sets of Hugging Face and ModelScope at one revision, with the sites' own clients.

    hf://ORG/NAME[/CONFIG][@REVISION][:SPLIT]        modelscope://ORG/NAME[@REVISION][:SPLIT]

A data set is a repository of files, and the files of a split are sources like any other. On Hugging
Face, a branch is resolved to its commit, which the manifest records, and the library `datasets`
lists the files of a split. ModelScope names no commit for a branch: the manifest records the
revision as it was given, and each file is compared with the listed sha256; a split consists of the
files with its name in their path. Files are kept in the sites' own caches (HF_HOME,
MODELSCOPE_CACHE). When a site cannot be reached, its last answer and the local files are used, with
a warning.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wikillm.core.errors import ConfigError, DataError, MachineError, did_you_mean
from wikillm.core.files import write_json
from wikillm.core.log import say, warn
from wikillm.data.fetch.cache import Cache, Fetched, key_of
from wikillm.data.fetch.remote import LOOKUP_SECONDS, OFFLINE, is_offline
from wikillm.data.sources.locate import is_named_like_a_corpus

SCHEMES = ("hf", "modelscope")
_ADDRESS = re.compile(
    r"(?P<scheme>hf|modelscope)://(?P<org>[\w.-]+)/(?P<name>[\w.-]+)(?:/(?P<config>[\w.-]+))?"
    r"(?:@(?P<revision>[^:@]+))?(?::(?P<split>[\w.-]+))?"
)
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_HOW_TO_DOWNLOAD = {
    "hf": "to use a mirror: export HF_ENDPOINT=https://hf-mirror.com; "
    "to use an account: export HF_TOKEN=...\n"
    "or on another machine: hf download {repo} --repo-type dataset --local-dir FOLDER, "
    "then data.path=FOLDER",
    "modelscope": "to use another address: export MODELSCOPE_ENDPOINT=https://...; "
    "to use an account: export MODELSCOPE_API_TOKEN=...\n"
    "or on another machine: modelscope download --dataset {repo} --local_dir FOLDER, "
    "then data.path=FOLDER",
}


class _NoAnswer(Exception):
    """The site did not answer, or gave no definite answer."""

    def __init__(self, error: BaseException | str) -> None:
        super().__init__(error if isinstance(error, str) else _first_line(error))


@dataclass(frozen=True, slots=True)
class DatasetAddress:
    """An entry of `data.path` that names a data set."""

    text: str
    scheme: str
    repo: str
    config: str | None
    revision: str | None
    split: str

    def refused(self, what: str, got: str, fix: str | None = None) -> DataError:
        fix = fix or _HOW_TO_DOWNLOAD[self.scheme].format(repo=self.repo)
        return DataError(what, got=f"{self.text}: {got}", fix=fix)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a split. `revision`: a commit (Hugging Face), a branch or tag (ModelScope)."""

    revision: str
    files: tuple[tuple[str, str], ...]  # path in the repository, sha256 (empty if unknown)


def parse(text: str) -> DatasetAddress:
    """Parse the address of a data set. Raises ConfigError if `text` is not such an address."""
    found = _ADDRESS.fullmatch(text)
    if found is None or (found["scheme"] == "modelscope" and found["config"]):
        scheme = "modelscope" if text.startswith("modelscope") else "hf"
        config = "[/CONFIG]" if scheme == "hf" else ""
        fix = f"write it as {scheme}://ORG/NAME{config}[@REVISION][:SPLIT]"
        raise ConfigError("This is not the address of a data set.", got=text, fix=fix)
    return DatasetAddress(
        text,
        found["scheme"],
        f"{found['org']}/{found['name']}",
        found["config"],
        found["revision"],
        found["split"] or "train",
    )


def fetch(text: str, cache: Cache, *, is_main: bool = True) -> list[Fetched]:
    """Download the files of a split. One process asks the site, the others wait. (all ranks)"""
    address = parse(text)
    # huggingface_hub reads this when it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    is_hf = address.scheme == "hf"
    ask = _hf_listing if is_hf else _modelscope_listing
    download = _hf_download if is_hf else _modelscope_download
    found = []
    with cache.exclusive(is_main, text) as requested_at:
        listing, is_local = _listing(address, ask, cache, requested_at)
        for path, sha256 in listing.files:
            try:
                is_local = is_local or is_offline()
                here = download(address.repo, listing.revision, path, sha256, is_local)
            except MachineError:
                raise
            except Exception as error:  # any error of the site's client or its HTTP library
                what = f"A file of a data set cannot be fetched: {path}."
                raise address.refused(what, _first_line(error)) from None
            url = f"{address.scheme}://{address.repo}/{path}"
            found.append(Fetched(Path(here), url, listing.revision))
    if is_main:
        revision = listing.revision[:12]
        say(f"data: {address.repo} at {revision}, {address.split}, {len(found)} files")
    return found


def _listing(
    address: DatasetAddress,
    ask: Callable[[DatasetAddress], Listing],
    cache: Cache,
    requested_at: float,
) -> tuple[Listing, bool]:
    """The site's listing and False; if the site does not answer, its last listing and True."""
    memory = cache.folder / "hub" / f"{key_of(address.text)}.json"
    known: Listing | None = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads(memory.read_text(encoding="utf-8"))
        known = Listing(value["revision"], tuple((path, sha256) for path, sha256 in value["files"]))
        # Another rank may have asked the site while this rank waited for the lock.
        if memory.stat().st_mtime >= requested_at:
            return known, bool(value.get("is_silent"))
    try:
        if is_offline():
            raise _NoAnswer(f"downloads are switched off by one of {', '.join(OFFLINE)}")
        listing = ask(address)
    except _NoAnswer as error:
        if known is None:
            what = "The site of a data set cannot be reached."
            raise address.refused(what, str(error)) from None
        revision = known.revision[:12]
        warn(f"{address.text}: {error}; revision {revision} is used, as last time")
        # The waiting ranks read this note; without it, each would wait for the timeout again.
        with suppress(OSError):
            write_json(memory, {**asdict(known), "is_silent": True})
        return known, True
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_json(memory, asdict(listing))
    return listing, False


def _hf_listing(address: DatasetAddress) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(address.repo, revision=address.revision, timeout=LOOKUP_SECONDS)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _no_such_data_set(address, error) from None
    except Exception as error:  # any error of the HTTP library
        raise _NoAnswer(error) from None
    revision = str(info.sha)
    urls = _of_split(address, _hf_splits(address, revision))
    start = f"hf://datasets/{address.repo}@{revision}/"
    if outside := [url for url in urls if not url.startswith(start)]:
        raise address.refused("A data set names files outside its repository.", outside[0])
    return Listing(revision, tuple((url.removeprefix(start), "") for url in urls))


def _hf_splits(address: DatasetAddress, revision: str) -> dict[str, list[str]]:
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(address.repo, address.config, revision=revision)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        # an unknown configuration, no data, or a script
        what = "The library `datasets` cannot list the files of this data set."
        fix = f"name a configuration: hf://{address.repo}/CONFIG\n"
        fix += "or download its files yourself, and set data.path to their folder"
        raise address.refused(what, str(error), fix) from None
    except Exception as error:  # an HTTP error, a cut connection, no answer
        raise _NoAnswer(error) from None
    return {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}


def _hf_download(repo: str, revision: str, path: str, sha256: str, is_local: bool) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(
        repo, path, repo_type="dataset", revision=revision, local_files_only=is_local
    )


def modelscope_client() -> Any:
    """ModelScope's HubApi. Raises MachineError when the installed modelscope has none."""
    try:
        from modelscope_hub.api import HubApi
    except ImportError as error:
        what = "ModelScope's hub needs a newer modelscope."
        fix = "pip install -U 'modelscope>=1.40'"
        raise MachineError(what, got=str(error), fix=fix) from None
    return HubApi()


def _modelscope_listing(address: DatasetAddress) -> Listing:
    site = modelscope_client()
    from modelscope_hub.errors import NotExistError, PermissionDeniedError

    revision = address.revision or "master"
    try:
        files = site.list_repo_files(address.repo, "dataset", revision=revision)
    except (NotExistError, PermissionDeniedError) as error:
        raise _no_such_data_set(address, error) from None
    except Exception as error:
        raise _NoAnswer(error) from None
    digests = {file.path: file.sha256 or "" for file in files if not file.is_dir}
    paths = _of_split(address, splits_of(digests))
    return Listing(revision, tuple((path, digests[path]) for path in paths))


def _modelscope_download(repo: str, revision: str, path: str, sha256: str, is_local: bool) -> str:
    return modelscope_client().download_file(
        repo,
        "dataset",
        path,
        revision=revision,
        expected_sha256=sha256 or None,
        local_files_only=is_local,
    )


def splits_of(paths: Iterable[str]) -> dict[str, list[str]]:
    """Corpus files by the split in their path; all are `train` if no path has a split."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for path in paths if is_named_like_a_corpus(path, text=True)):
        words = re.split(r"[/_.\-]+", path.lower())
        split = next((name for name in _SPLITS if name in words), "")
        found.setdefault(split, []).append(path)
    if set(found) == {""}:
        return {"train": found[""]}
    found.pop("", None)  # files beside named splits hold descriptions or statistics
    return found


def _of_split(address: DatasetAddress, splits: dict[str, list[str]]) -> list[str]:
    """The files of the wanted split. Raises DataError when the data set does not have it."""
    if address.split in splits:
        return splits[address.split]
    names = sorted(splits)
    suggestion = did_you_mean(address.split, names) or (names[0] if names else None)
    listed = ", ".join(names)
    got = f"its splits are {listed}" if names else "none of its files is named like a corpus"
    base = address.text.removesuffix(f":{address.split}")
    what = f"The data set has no split {address.split}."
    raise address.refused(what, got, f"{base}:{suggestion}" if suggestion else None)


def _no_such_data_set(address: DatasetAddress, error: BaseException) -> DataError:
    what = "The data set does not exist, or you have no access to it."
    return address.refused(what, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
