"""Read remote files: size, version, bytes from any offset (urllib for http, else fsspec).

`stat` gives size and version (ETag, or the date) without reading; `read_from` streams from an
offset, so that an interrupted download resumes. Temporary failures (no answer, a cut connection,
5xx, 429) raise `Unreachable`, and the caller retries; permanent failures (404, 403) raise DataError
at once. Credentials come from the environment only.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from wikillm.core.errors import ConfigError, DataError, MachineError, WikiLLMError

SILENCE_SECONDS = 30.0  # timeout for the next bytes from a server
LOOKUP_SECONDS = 5.0  # timeout for an answer from a site of data sets or models
PIECE_BYTES = 1 << 20
_RANGE_BYTES = 8 << 20  # bytes per request of a client that does not stream (s3, oss)
_EXTRAS = {"s3": "s3fs", "oss": "ossfs"}
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WIKILLM_OFFLINE")
HOW_WITHOUT = "or download it by other means, and name the file: data.path=FILE"


class Unreachable(Exception):
    """A temporary failure: a retry may succeed."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server. `size` is None and `version` empty if the server reports none."""

    url: str
    size: int | None
    version: str


def is_offline() -> bool:
    """Whether the environment forbids requests to the sites of data sets and models."""
    values = (os.environ.get(name, "").strip().lower() for name in OFFLINE)
    return any(value in ("1", "true", "yes", "on") for value in values)


def scheme_of(text: str) -> str:
    """The scheme of an address, as `s3` in `s3://bucket/key`; empty for a path."""
    found = _SCHEME.match(text)
    return found[1].lower() if found else ""


def _is_web(url: str) -> bool:
    return scheme_of(url) in ("http", "https")


def without_secrets(url: str) -> str:
    """The address without its query, which is secret in a presigned address, and its user."""
    return re.sub(r"://[^/@]*@", "://", url.split("?")[0].split("#")[0])


def file_name(url: str) -> str:
    """The name at the end of the address, as a valid file name."""
    name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^\w.,+@=-]", "_", name).lstrip(".")[-120:] or "file"


def check_address(url: str) -> None:
    """Raise ConfigError for an unsupported scheme, and for a password in the address."""
    scheme = scheme_of(url)
    if not _is_web(url) and scheme not in _EXTRAS:
        raise ConfigError(
            f"Addresses of the scheme {scheme}:// cannot be read.",
            got=without_secrets(url),
            fix="use http, https, s3 or oss; for data sets hf or modelscope",
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _unreadable(url, str(error)) from None
    if parts.query == "***":
        raise ConfigError(
            "An address in data.path has lost its query, which a run's files do not store.",
            got=without_secrets(url),
            fix="set data.path to the address with its query; or, if its token store exists, "
            "use data.path=null and set data.store to the folder of the store",
        )
    if "@" in parts.netloc:
        raise ConfigError(
            "An address in data.path holds a user or a password.",
            got=without_secrets(url),
            fix="remove it, and set the keys in the environment: AWS_ACCESS_KEY_ID ..., "
            "OSS_ACCESS_KEY_ID ...",
        )


def stat(url: str) -> RemoteFile:
    """Size and version of a file. Raises Unreachable, or DataError if missing or forbidden."""
    check_address(url)
    if _is_web(url):
        # Not HEAD: a presigned address is signed for GET.
        with _open(url, {"Range": "bytes=0-0"}) as answer:
            return _from_headers(url, answer)
    info = _call(url, "info")
    if info["type"] != "file":
        what = "An address in data.path is a folder, not a file."
        raise DataError(what, got=without_secrets(url), fix=f"{without_secrets(url)}/*.jsonl")
    names = ("ETag", "etag", "LastModified", "last_modified")
    version = next((info[name] for name in names if info.get(name)), "")
    return RemoteFile(url, int(info["size"]), str(version).strip('"'))


def list_files(url: str) -> list[str]:
    """The files that match an address with a `*` or a trailing `/`, sorted."""
    path = urlsplit(url).path if _is_web(url) else url
    if "*" not in url and not path.endswith("/"):
        return [url]
    if _is_web(url):
        raise ConfigError(
            "A web address cannot be listed: it must name one file.",
            got=without_secrets(url),
            fix="name each file, or use s3:// or oss://, which can be listed",
        )
    found = _call(url, "glob" if "*" in url else "find")
    return [f"{scheme_of(url)}://{name}" for name in sorted(found)]


def read_from(file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) from `offset` on; from 0 if the server cannot resume or has a new version."""
    return _web_pieces(file, offset) if _is_web(file.url) else _ranges(file, offset)


def _ranges(file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
    while file.size is not None and offset < file.size:
        stop = min(offset + _RANGE_BYTES, file.size)
        # ossfs passes `end` to a client that includes this byte; for an `end` beyond the object,
        # the server returns the whole object.
        end = stop - 1 if scheme_of(file.url) == "oss" else stop
        piece = _call(file.url, "cat_file", start=offset, end=end)
        if not piece:
            raise Unreachable("the server sent nothing")
        if len(piece) > stop - offset:
            asked = f"{stop - offset} from {offset} on"
            raise Unreachable(f"{len(piece)} bytes arrived instead of the {asked}")
        yield offset, piece
        offset += len(piece)


def _web_pieces(file: RemoteFile, offset: int) -> Iterator[tuple[int, bytes]]:
    headers = {}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if file.version:
            headers["If-Range"] = file.version
    with _open(file.url, headers) as answer:
        at = offset if answer.status == 206 else 0
        content_range = answer.headers.get("Content-Range", "")
        sent = content_range.removeprefix("bytes ").partition("-")[0].strip()
        if answer.status == 206 and sent.isdigit() and int(sent) != offset:
            raise Unreachable(f"the server sent bytes from {sent} on instead of {offset}")
        try:
            while piece := answer.read(PIECE_BYTES):
                yield at, piece
                at += len(piece)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(_reason(error)) from None
    if file.size is not None and at < file.size:
        raise Unreachable(f"the connection ended after {at} of {file.size} bytes")


def _from_headers(url: str, answer: http.client.HTTPResponse) -> RemoteFile:
    """Size and version from the headers of an answer."""
    size = answer.headers.get("Content-Length")
    if answer.status == 206:
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    return RemoteFile(url, int(size) if size and size.isdigit() else None, version)


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The answer to a GET request. Raises Unreachable or DataError."""
    headers = {"User-Agent": "wikillm", "Accept-Encoding": "identity", **headers}
    try:
        request = urllib.request.Request(url, headers=headers)
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SILENCE_SECONDS)
        return answer
    except urllib.error.HTTPError as error:
        with error:
            status = f"HTTP {error.code} {error.reason}"
            if error.code in _TEMPORARY:
                raise Unreachable(status) from None
            if error.code == 416:  # not even the first byte exists
                status = "HTTP 416: the file is empty, or shorter than before"
            raise _unreadable(url, status) from None
    except UnicodeError:
        raise _unreadable(url, "its letters beyond ASCII must be written as %XX") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise _unreadable(url, str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(_reason(error)) from None


def _unreadable(url: str, why: str) -> DataError:
    return DataError(
        "A remote file cannot be read.",
        got=f"{without_secrets(url)}: {why}",
        fix=f"check the address\n{HOW_WITHOUT}",
    )


def _reason(error: BaseException) -> str:
    """The message of an error on one line, or its type; of a URLError, its reason."""
    inner = getattr(error, "reason", error)
    return " ".join(str(inner).split()) or type(inner).__name__


def _call(url: str, name: str, **arguments: Any) -> Any:
    """Call a method of an fsspec file system of this process: none works after a fork."""
    try:
        return getattr(_file_system(url), name)(url.split("://", 1)[1], **arguments)
    except FileNotFoundError:
        raise _unreadable(url, "there is no such file") from None
    except WikiLLMError:
        raise
    except (PermissionError, ValueError, TypeError) as error:  # not the network
        raise _unreadable(url, f"{_reason(error)}; are its keys in the environment?") from None
    except Exception as error:  # each library has its own, such as RequestError
        reason = f"{type(error).__name__}: {_reason(error)}"
        # The error has the status of the answer; ossfs wraps the error of its client.
        statuses = [getattr(cause, "status", None) for cause in (error, error.__cause__)]
        status = next((found for found in statuses if isinstance(found, int)), 0)
        is_final = 400 <= status < 500 and status not in _TEMPORARY
        if is_final or "Credentials" in type(error).__name__:
            raise _unreadable(url, f"{reason}; are its keys in the environment?") from None
        raise Unreachable(reason) from None


def _file_system(url: str) -> Any:
    scheme = scheme_of(url)
    try:
        import fsspec

        # ossfs fails without a cache of listings, so each call gets a new file system and cache.
        is_oss = scheme == "oss"
        caching = {"use_listings_cache": is_oss, "skip_instance_cache": is_oss}
        return fsspec.filesystem(scheme, **caching, **_options(scheme))
    except ImportError as error:
        raise MachineError(
            f"Reading {scheme}:// needs the package {_EXTRAS[scheme]}, which is not installed.",
            got=f"{without_secrets(url)}: {error}",
            fix=f"pip install 'wikillm[remote]'\n{HOW_WITHOUT}",
        ) from None


def _options(scheme: str) -> dict[str, Any]:
    """The file system's options from the environment.

    s3fs reads AWS_* itself. ossfs reads no variables, so Alibaba Cloud's names are read here.
    """
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return {"endpoint_url": endpoint} if endpoint else {}
    if not os.environ.get("OSS_ENDPOINT"):
        raise ConfigError(
            "oss:// needs the endpoint of its region.",
            got="OSS_ENDPOINT is not set",
            fix="export OSS_ENDPOINT=https://oss-cn-hangzhou.aliyuncs.com, with your own region",
        )
    names = {
        "endpoint": "OSS_ENDPOINT",
        "key": "OSS_ACCESS_KEY_ID",
        "secret": "OSS_ACCESS_KEY_SECRET",
        "token": "OSS_SESSION_TOKEN",
    }
    return {option: os.environ[name] for option, name in names.items() if os.environ.get(name)}
