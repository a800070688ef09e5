"""SwanLab Launch over HTTP, by the contract of its last client (swanlab 0.4.2, 2024-12-23).

This client was not run against the real service. A request without a complete answer after
`timeout` seconds fails. Requests go to the account's host only, follow no redirect and ignore
~/.netrc. After a 5xx or a broken connection they are tried up to three times. A request that
creates a task or a data set is sent only once: if only the answer is lost, the task exists already.
An answer whose form differs from the contract is an error that names the contract.

Contract: POST /login/api_key (header authorization) -> sid, userInfo; then the cookie sid.
GET /user/codes/sts; POST /task; GET /task?num=N; GET /task/ID; PATCH /task/status;
GET /task/datasets; POST /task/dataset; PATCH /task/dataset/status.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import requests
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from requests.auth import AuthBase

from wikillm.core.errors import ConfigError, MachineError, WikiLLMError
from wikillm.launch.swanlab_account import Account
from wikillm.observe.redact import environment_secrets, redact_text

CONTRACT = (
    "that of SwanLab's client 0.4.2 of 2024-12-23; swanlab 0.4.3 removed that client, "
    "and whether the service still answers is unknown"
)
FINISHED = ("COMPLETED", "CRASHED", "STOPPED")
CONNECT_SECONDS = 5.0
MAX_BYTES = 16 * 2**20
_PAUSES = (0.5, 2.0)
_ELSEWHERE = (
    "run elsewhere: wikillm launch ssh ..., wikillm launch slurm ...\n"
    "or take the archive: --zip FILE"
)
_LIST_TASKS = "wikillm launch swanlab task list"

T = TypeVar("T")


def _printable(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError("not printable text")
    return text


_Text = Annotated[str, AfterValidator(_printable)]
_HostPart = Annotated[str, Field(pattern="^[A-Za-z0-9-]+$")]
_Prefix = Annotated[_Text, AfterValidator(lambda text: text.strip("/"))]
_Maybe = Annotated[str, BeforeValidator(lambda value: "" if value is None else str(value))]


class _Answer(BaseModel):
    """Part of an answer. Keys without a field are ignored."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class _Login(_Answer):
    sid: _Text


class _Output(_Answer):
    path: _Maybe = ""
    size: int | None = None


class Task(_Answer):
    """A task as the service describes it. `output.path`: key of its output in the object store."""

    id: _Text = Field(alias="cuid")
    name: _Text
    status: _Text
    entry: _Maybe = Field("", alias="index")
    python: _Maybe = ""
    combo: _Maybe = ""
    created: _Maybe = Field("", alias="createdAt")
    started: _Maybe = Field("", alias="startedAt")
    finished: _Maybe = Field("", alias="finishedAt")
    message: _Maybe = Field("", alias="msg")
    output: Annotated[_Output, BeforeValidator(lambda x: x or {})] = _Output()


class Dataset(_Answer):
    id: _Text = Field(alias="cuid")
    name: _Text
    desc: _Maybe = ""
    status: _Maybe = ""


class _Created(_Answer):
    id: _Text = Field(alias="cuid")


class _Keys(_Answer):
    id: _Text = Field(alias="tmpSecretId", repr=False)
    key: _Text = Field(alias="tmpSecretKey", repr=False)
    token: _Text = Field(alias="sessionToken", repr=False)


class Credentials(_Answer):
    """Credentials for the object store, valid until `expires` (Unix time)."""

    region: _HostPart
    bucket: _HostPart
    prefix: _Prefix
    expires: float = Field(alias="expiredTime")
    keys: _Keys = Field(alias="credentials")


class _NoNetrc(AuthBase):
    """Adds no credentials. Without this, the requests library would use those of ~/.netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class SwanLabApi:
    """A client that logs in: `with SwanLabApi(account) as api`.

    Its methods raise ConfigError if the service refuses a request, MachineError if it does not
    answer.
    """

    def __init__(self, account: Account, *, timeout: float = 30.0) -> None:
        self.account = account
        self.timeout = timeout
        self._session = requests.Session()
        self._session.auth = _NoNetrc()
        self._session.headers.update({"swanlab-sdk": "0.4.2", "user-agent": "wikillm"})

    def __enter__(self) -> SwanLabApi:
        headers = {"authorization": self.account.key}
        login = self._ask(_Login, "POST", "/login/api_key", headers=headers)
        self._session.headers["cookie"] = f"sid={login.sid}"
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def credentials(self) -> Credentials:
        return self._ask(Credentials, "GET", "/user/codes/sts")

    def create_task(self, body: Mapping[str, Any]) -> str | None:
        """Create a task from `body` and the key. Returns its id if the answer has one."""
        list_data = "use an id of `wikillm launch swanlab data list` as spec.volumes.id"
        machine = "correct metadata.combo, or leave it out"
        refusals = {
            404: ConfigError("SwanLab knows no such data set.", fix=list_data),
            401: ConfigError("SwanLab knows no such machine.", fix=machine),
        }
        whole = {**body, "conf": {"key": self.account.key}}
        answer = self._ask(object, "POST", "/task", whole, refusals, repeat=False)
        identifier = answer.get("cuid") if isinstance(answer, dict) else None
        return identifier if isinstance(identifier, str) and identifier else None

    def tasks(self, number: int) -> list[Task]:
        return self._ask(list[Task], "GET", f"/task?num={number}")

    def task(self, identifier: str) -> Task:
        return self._ask(Task, "GET", f"/task/{_id(identifier)}", refusals=_no_task(identifier))

    def stop(self, identifier: str) -> None:
        body = {"cuid": _id(identifier), "status": "STOPPED", "msg": "stopped by its user"}
        self._ask(object, "PATCH", "/task/status", body, _no_task(identifier))

    def datasets(self) -> list[Dataset]:
        return self._ask(list[Dataset], "GET", "/task/datasets")

    def create_dataset(self, name: str, desc: str | None) -> str:
        body = {"name": name} | ({"desc": desc} if desc else {})
        return _id(self._ask(_Created, "POST", "/task/dataset", body, repeat=False).id)

    def finish_dataset(self, identifier: str, *, ok: bool) -> None:
        body = {"cuid": identifier, "status": "SUCCESS" if ok else "FAILURE"}
        self._ask(object, "PATCH", "/task/dataset/status", body)

    def _ask(
        self,
        shape: type[T],
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        refusals: Mapping[int, WikiLLMError] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
    ) -> T:
        """Send a request and return the answer, validated as `shape`.

        Args:
            refusals: errors to raise, by HTTP status.
            repeat: try again after a 5xx or a broken connection.
        """
        # Send it, again after a pause if that is allowed.
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
        # Refuse any answer but a success of the expected form.
        if status >= 400:
            raise (refusals or {}).get(status) or self._refused(status, path, content)
        if status >= 300:
            raise _other_shape(path, f"a redirect ({status}), which is not followed")
        try:
            return TypeAdapter(shape).validate_json(content.strip() or b"{}")
        except ValidationError as error:
            found = (f"{'.'.join(map(str, one['loc']))} {one['msg']}" for one in error.errors())
            raise _other_shape(path, ", ".join(found)) from None

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[int, bytes]:
        """Send one request, with a time limit for the whole answer, not only for each read."""
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
            # `read1` returns what has arrived, so the limits hold for a slow answer too.
            while piece := response.raw.read1(2**16, decode_content=True):
                content += piece
                if time.monotonic() > deadline:
                    late = f"the answer was not complete after {self.timeout:g} s"
                    raise requests.exceptions.ReadTimeout(late)
                if len(content) > MAX_BYTES:
                    raise _other_shape(path, f"more than {MAX_BYTES} bytes")
            return response.status_code, bytes(content)

    def _refused(self, status: int, path: str, content: bytes) -> WikiLLMError:
        """The error for an HTTP status of 400 or more."""
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
            return ConfigError("SwanLab refused the request.", got=got)
        return _failed("SwanLab Launch answers with an error.", got)


def _no_task(identifier: str) -> dict[int, WikiLLMError]:
    return {404: ConfigError("SwanLab knows no such task.", got=identifier, fix=_LIST_TASKS)}


def _failed(what: str, got: str) -> MachineError:
    return MachineError(what, got=f"{got}\nthe contract is {CONTRACT}", fix=_ELSEWHERE)


def _no_answer(host: str, error: requests.RequestException, *, created: bool) -> MachineError:
    reason = " ".join(redact_text(str(error), environment_secrets()).split())[:300]
    got = f"{host}: {type(error).__name__}: {reason or type(error).__name__}"
    if created:
        got += "\nthe answer is lost; the task or data set may exist"
    return _failed("SwanLab Launch does not answer.", got)


def _other_shape(path: str, got: str) -> MachineError:
    return _failed("SwanLab answers in an unknown form.", f"{path}: {got}")


def _id(identifier: str) -> str:
    """`identifier`, if it may be part of addresses and object keys. Else raises ConfigError."""
    if not identifier.isascii() or not identifier.replace("-", "").replace("_", "").isalnum():
        raise ConfigError("This is not an id.", got=repr(identifier))
    return identifier
