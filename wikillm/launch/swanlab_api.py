"""SwanLab Launch over HTTP, by the contract of its last client (swanlab 0.4.2, 2024-12-23).

Not run against the real service. An answer is complete within `timeout` seconds or is an error.
Requests go to the account's host only, follow no redirect and use no credentials of a ~/.netrc.
What can be repeated without harm is tried three times on a 5xx or a broken connection. Creating a
task or a data set is not: after a lost answer it may exist. An answer of another shape than the
contract's is an error that names the contract.

Contract: POST /login/api_key (header authorization) -> sid, userInfo; then the cookie sid.
GET /user/codes/sts; POST /task; GET /task?num=N; GET /task/ID; PATCH /task/status;
GET /task/datasets; POST /task/dataset; PATCH /task/dataset/status.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import requests
from requests.auth import AuthBase

from wikillm.core.errors import ConfigError, MachineError, WikiLLMError
from wikillm.launch.swanlab_account import Account
from wikillm.observe.redact import environment_secrets, redact_text

CONTRACT = (
    "as SwanLab's client 0.4.2 of 2024-12-23 spoke to it; "
    "it was removed in 0.4.3, and whether it still answers is unknown"
)
FINISHED = ("COMPLETED", "CRASHED", "STOPPED")
CONNECT_SECONDS = 5.0
MOST_BYTES = 16 * 2**20
_PAUSES = (0.5, 2.0)
_ELSEWHERE = (
    "run elsewhere: wikillm launch ssh ..., wikillm launch slurm ...\n"
    "or take the archive: --zip FILE"
)
_LIST_TASKS = "wikillm launch swanlab task list"


@dataclass(frozen=True, slots=True)
class Task:
    """A task as the service describes it, with its times; `output` is the key of its result."""

    id: str
    name: str
    status: str
    entry: str
    python: str
    combo: str | None
    created: str
    started: str | None
    finished: str | None
    message: str | None
    output: str | None
    output_size: int | None


@dataclass(frozen=True, slots=True)
class Dataset:
    id: str
    name: str
    desc: str | None
    status: str | None


@dataclass(frozen=True, slots=True)
class Credentials:
    """For the object store, until `expires` (Unix time)."""

    region: str
    bucket: str
    prefix: str
    expires: float
    secret_id: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str = field(repr=False)


class _NoNetrc(AuthBase):
    """Changes nothing. Without an auth, requests would use a ~/.netrc instead of the key."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class SwanLabApi:
    """A logged-in client: `with SwanLabApi(account) as api`.

    Raises ConfigError for what is refused, MachineError when there is no answer.
    """

    def __init__(self, account: Account, *, timeout: float = 30.0) -> None:
        self.account = account
        self.timeout = timeout
        self._session = requests.Session()
        self._session.auth = _NoNetrc()
        self._session.headers.update({"swanlab-sdk": "0.4.2", "user-agent": "wikillm"})

    def __enter__(self) -> SwanLabApi:
        answer = self._ask("POST", "/login/api_key", headers={"authorization": self.account.key})
        self._session.headers["cookie"] = f"sid={_text(answer, 'sid', '/login/api_key')}"
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def credentials(self) -> Credentials:
        path = "/user/codes/sts"
        answer = self._ask("GET", path)
        secrets = answer.get("credentials")
        if not isinstance(secrets, dict) or not isinstance(answer.get("expiredTime"), int | float):
            raise _other_shape(path, f"keys {sorted(answer)}")
        region, bucket, prefix = (_text(answer, k, path) for k in ("region", "bucket", "prefix"))
        if not all(part.replace("-", "").isalnum() for part in (region, bucket)):
            raise _other_shape(path, "a region or bucket that is no host name")  # they become one
        expires = float(answer["expiredTime"])
        keys = (_text(secrets, k, path) for k in ("tmpSecretId", "tmpSecretKey", "sessionToken"))
        return Credentials(region, bucket, prefix.strip("/"), expires, *keys)

    def create_task(self, body: Mapping[str, Any]) -> str | None:
        """Returns the id if the answer has one. The key is added to `body` here, under `conf`."""
        list_data = "spec.volumes.id: wikillm launch swanlab data list"
        machine = "metadata.combo, or leave it out"
        refusals = {
            404: ConfigError("SwanLab knows no such data set.", fix=list_data),
            401: ConfigError("SwanLab knows no such machine.", fix=machine),
        }
        whole = {**body, "conf": {"key": self.account.key}}
        answer = self._ask("POST", "/task", whole, refusals, repeat=False, any_shape=True)
        identifier = answer.get("cuid") if isinstance(answer, dict) else None
        return identifier if isinstance(identifier, str) and identifier else None

    def tasks(self, number: int) -> list[Task]:
        answer = self._ask("GET", f"/task?num={number}", any_shape=True)
        return [_task(one, "/task") for one in _list(answer, "/task")]

    def task(self, identifier: str) -> Task:
        answer = self._ask("GET", f"/task/{_id(identifier)}", refusals=_no_task(identifier))
        return _task(answer, "/task/ID")

    def stop(self, identifier: str) -> None:
        body = {"cuid": _id(identifier), "status": "STOPPED", "msg": "stopped by its user"}
        self._ask("PATCH", "/task/status", body, _no_task(identifier), any_shape=True)

    def datasets(self) -> list[Dataset]:
        path = "/task/datasets"
        return [
            Dataset(
                _text(one, "cuid", path),
                _text(one, "name", path),
                one.get("desc"),
                one.get("status"),
            )
            for one in _list(self._ask("GET", path, any_shape=True), path)
        ]

    def create_dataset(self, name: str, desc: str | None) -> str:
        body = {"name": name} | ({"desc": desc} if desc else {})
        answer = self._ask("POST", "/task/dataset", body, repeat=False)
        return _id(_text(answer, "cuid", "/task/dataset"))

    def finish_dataset(self, identifier: str, *, ok: bool) -> None:
        body = {"cuid": identifier, "status": "SUCCESS" if ok else "FAILURE"}
        self._ask("PATCH", "/task/dataset/status", body, any_shape=True)

    def _ask(
        self,
        method: Literal["GET", "POST", "PATCH"],
        path: str,
        body: Mapping[str, Any] | None = None,
        refusals: Mapping[int, WikiLLMError] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
        any_shape: bool = False,
    ) -> Any:
        """The decoded answer, a JSON object unless `any_shape`; `refusals` by HTTP status."""
        for pause in (*(_PAUSES if repeat else ()), None):
            try:
                status, content = self._send(method, path, body, headers)
            except requests.RequestException as error:
                if pause is None or isinstance(error, requests.exceptions.SSLError):
                    raise _no_answer(self.account.host, error, created=not repeat) from None
            else:
                if status < 500 or pause is None:
                    break
            time.sleep(pause)
        if status >= 400:
            raise (refusals or {}).get(status) or self._refused(status, path, content)
        return _decode(status, content, path, any_shape=any_shape)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[int, bytes]:
        """One request. requests bounds each read only; here the whole answer is bounded."""
        deadline = time.monotonic() + self.timeout
        content = bytearray()
        with self._session.request(
            method,
            self.account.host + path,
            json=body,
            headers=headers,
            timeout=(min(CONNECT_SECONDS, self.timeout), self.timeout),
            allow_redirects=False,
            stream=True,
        ) as response:
            while piece := response.raw.read1(2**16, decode_content=True):
                content += piece
                if time.monotonic() > deadline:
                    late = f"the answer was not complete after {self.timeout:g} s"
                    raise requests.exceptions.ReadTimeout(late)
                if len(content) > MOST_BYTES:
                    raise _other_shape(path, f"more than {MOST_BYTES} bytes")
            return response.status_code, bytes(content)

    def _refused(self, status: int, path: str, content: bytes) -> WikiLLMError:
        is_denied = status in (401, 403)
        if is_denied and path == "/login/api_key":
            what = "SwanLab does not accept the key."
            if status == 403:
                what = "SwanLab has not verified this account yet."
            got = f"{status} from {self.account.host}"
            return ConfigError(what, got=got, fix="SWANLAB_API_KEY, or `swanlab login`")
        secrets = (self.account.key, *environment_secrets())
        text = "".join(c if c.isprintable() else " " for c in content.decode("utf-8", "replace"))
        got = f"{status} from {path}: {' '.join(redact_text(text, secrets).split())[:300]}"
        if is_denied:
            return ConfigError("SwanLab refuses this.", got=got)
        return _failed("SwanLab Launch answers with an error.", got)


def _no_task(identifier: str) -> dict[int, WikiLLMError]:
    return {404: ConfigError("SwanLab knows no such task.", got=identifier, fix=_LIST_TASKS)}


def _decode(status: int, content: bytes, path: str, *, any_shape: bool) -> Any:
    if status >= 300:
        raise _other_shape(path, f"a redirect ({status}), which is not followed")
    try:
        answer = json.loads(content) if content.strip() else {}
    except ValueError:
        raise _other_shape(path, f"{len(content)} bytes that are not JSON") from None
    if not any_shape and not isinstance(answer, dict):
        raise _other_shape(path, type(answer).__name__)
    return answer


def _failed(what: str, got: str) -> MachineError:
    return MachineError(what, got=f"{got}\nthe contract is {CONTRACT}", fix=_ELSEWHERE)


def _no_answer(host: str, error: requests.RequestException, *, created: bool) -> MachineError:
    reason = " ".join(redact_text(str(error), environment_secrets()).split())[:300]
    got = f"{host}: {type(error).__name__}: {reason or type(error).__name__}"
    if created:
        got += "\nthe answer is lost, what was asked for may exist all the same"
    return _failed("SwanLab Launch does not answer.", got)


def _other_shape(path: str, got: str) -> MachineError:
    return _failed("SwanLab answers in another shape than is known here.", f"{path}: {got}")


def _id(identifier: str) -> str:
    """An id, which becomes part of addresses and object keys. Raises ConfigError for other text."""
    if not identifier.isascii() or not identifier.replace("-", "").replace("_", "").isalnum():
        raise ConfigError("This is not an id.", got=repr(identifier))
    return identifier


def _list(answer: Any, path: str) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
        raise _other_shape(path, f"{type(answer).__name__} instead of a list of objects")
    return answer


def _text(answer: Mapping[str, Any], key: str, path: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _other_shape(path, f"no text under {key!r}, but the keys {sorted(map(str, answer))}")
    return value


def _task(answer: Mapping[str, Any], path: str) -> Task:
    def maybe(key: str) -> str | None:
        value = answer.get(key)
        return None if value in (None, "") else str(value)

    output = answer.get("output")
    output = output if isinstance(output, dict) else {}
    where = output.get("path")
    size = output.get("size")
    return Task(
        id=_text(answer, "cuid", path),
        name=_text(answer, "name", path),
        status=_text(answer, "status", path),
        entry=maybe("index") or "",
        python=maybe("python") or "",
        combo=maybe("combo"),
        created=maybe("createdAt") or "",
        started=maybe("startedAt"),
        finished=maybe("finishedAt"),
        message=maybe("msg"),
        output=where if isinstance(where, str) and where else None,
        output_size=size if isinstance(size, int) else None,
    )
