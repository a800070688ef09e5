"""SwanLab's object store (Tencent COS), through Tencent's own SDK, which signs the requests. Extra: `wikillm[swanlab-launch]`.

Files up to 1 MiB go in one PUT, larger ones in parts, as the old client sent them; a part that fails ends the upload and
removes what was sent. Every request is bounded by `timeout` seconds and tried twice on a 5xx or a broken connection.
Credentials are temporary: they are asked for anew before they run out. Fresh ones may not be known to the store for a
moment, so that a 403 in their first seconds is asked about again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from wikillm.core.errors import MachineError
from wikillm.core.files import STAGING_SUFFIX, rename_durably
from wikillm.core.units import format_size
from wikillm.launch.swanlab_api import CONTRACT, Credentials

ONE_PUT = 2**20
PART = 8 * 2**20
MOST_PARTS = 10_000
_REFRESH_BEFORE = 120.0
_SETTLES_WITHIN = 3.0


class ObjectStore:
    """The user's part of the bucket: keys are relative to the prefix that the service gave out."""

    def __init__(self, ask: Callable[[], Credentials], *, timeout: float = 30.0) -> None:
        check_installed()
        self._ask, self._timeout = ask, timeout
        self._given: Credentials | None = None
        self._client: Any = None
        self._since = 0.0

    @property
    def credentials(self) -> Credentials:
        """Valid for two minutes at least."""
        if self._given is None or self._given.expires - time.time() < _REFRESH_BEFORE:
            from qcloud_cos import CosConfig, CosS3Client

            given = self._ask()
            config = CosConfig(
                Region=given.region,
                SecretId=given.secret_id,
                SecretKey=given.secret_key,
                Token=given.token,
                Scheme="https",
                Timeout=(min(5.0, self._timeout), self._timeout),
            )
            # Its log has the session token at debug level, and answers of the store at error level.
            logging.getLogger("qcloud_cos").setLevel(logging.CRITICAL + 1)
            self._client, self._given, self._since = (
                CosS3Client(config, retry=1),
                given,
                time.monotonic(),
            )
        return self._given

    def put(self, key: str, path: Path, on_bytes: Callable[[int], None] = lambda sent: None) -> str:
        """Upload a file; returns the whole key. Raises MachineError when the store refuses or does not answer."""
        size = path.stat().st_size
        if size > ONE_PUT:
            return self._put_parts(key, path, size, on_bytes)
        body = path.read_bytes()
        whole = self._run(
            key, lambda bucket, name: self._client.put_object(Bucket=bucket, Key=name, Body=body)
        )
        on_bytes(size)
        return whole

    def get(self, key: str, target: Path) -> int:
        """Download to `target`, complete or not at all; returns its size in bytes."""
        staged = target.with_name(f".{target.name}.{os.getpid()}{STAGING_SUFFIX}")
        target.parent.mkdir(parents=True, exist_ok=True)

        def load(bucket: str, name: str) -> None:
            answer = self._client.get_object(Bucket=bucket, Key=name)
            with open(staged, "wb") as file:
                for piece in answer["Body"].get_stream(PART):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            expected = int(answer.get("Content-Length", -1))
            if expected not in (-1, staged.stat().st_size):
                raise ConnectionError(f"{staged.stat().st_size} of {expected} bytes came")

        try:
            self._run(key, load)
            rename_durably(staged, target)
        finally:
            staged.unlink(missing_ok=True)
        return target.stat().st_size

    def _put_parts(self, key: str, path: Path, size: int, on_bytes: Callable[[int], None]) -> str:
        part_size = max(PART, -(-size // MOST_PARTS))
        upload = ""

        def begin(bucket: str, name: str) -> None:
            nonlocal upload
            upload = self._client.create_multipart_upload(Bucket=bucket, Key=name)["UploadId"]

        self._run(key, begin)
        try:
            parts: list[dict[str, Any]] = []
            with open(path, "rb") as file:
                while body := file.read(part_size):
                    number = len(parts) + 1

                    def send(
                        bucket: str, name: str, body: bytes = body, number: int = number
                    ) -> None:
                        answer = self._client.upload_part(
                            Bucket=bucket, Key=name, Body=body, PartNumber=number, UploadId=upload
                        )
                        parts.append({"PartNumber": number, "ETag": answer["ETag"]})

                    self._run(key, send)
                    on_bytes(len(body))
            return self._run(
                key,
                lambda bucket, name: self._client.complete_multipart_upload(
                    Bucket=bucket, Key=name, UploadId=upload, MultipartUpload={"Part": parts}
                ),
            )
        except BaseException:
            self._abort(key, upload)
            raise

    def _abort(self, key: str, upload: str) -> None:
        """Parts that are left behind are stored, and paid for. Never raises: the first error matters more."""
        try:
            given = self.credentials
            self._client.abort_multipart_upload(
                Bucket=given.bucket, Key=f"{given.prefix}/{key}", UploadId=upload
            )
        except Exception as error:
            logging.getLogger("wikillm").warning(
                "parts of %s may be left in the store: %s", key, type(error).__name__
            )

    def _run(self, key: str, request: Callable[[str, str], object]) -> str:
        """`request(bucket, whole key)` with valid credentials, its failures as MachineError."""
        from qcloud_cos.cos_exception import CosClientError, CosServiceError

        while True:
            given = self.credentials
            whole = f"{given.prefix}/{key}"
            try:
                request(given.bucket, whole)
                return whole
            except CosServiceError as error:
                if (
                    error.get_status_code() == 403
                    and time.monotonic() - self._since < _SETTLES_WITHIN
                ):
                    time.sleep(1.0)
                    continue
                got = f"{error.get_status_code()}: {_plain(error.get_digest_msg())}"  # its other getters need an XML answer
                raise MachineError(
                    "SwanLab's object store refuses this.", got=f"{whole}: {got}"
                ) from None
            except (KeyError, ParseError) as error:
                raise MachineError(
                    "SwanLab's object store answers in another shape than is known here.",
                    got=f"{whole}: {type(error).__name__} {_plain(error)}\nthe contract is {CONTRACT}",
                ) from None
            except (CosClientError, OSError) as error:  # requests' errors are OSErrors
                raise MachineError(
                    "SwanLab's object store does not answer.",
                    got=f"bucket {given.bucket} in {given.region}: {_plain(error)}\nthe contract is {CONTRACT}",
                    fix="try again; a proxy is taken from HTTPS_PROXY, its certificate from REQUESTS_CA_BUNDLE",
                ) from None


def check_installed() -> None:
    """Raises MachineError without Tencent's SDK, before anything was asked or sent."""
    try:
        import qcloud_cos  # noqa: F401
    except ImportError:
        raise MachineError(
            "Uploading to SwanLab needs Tencent's COS package.",
            fix='pip install "wikillm[swanlab-launch]"',
        ) from None


def _plain(value: object) -> str:
    text = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return text.partition("?")[0][:300]  # what follows in an address is a signature


def describe_size(size: int) -> str:
    """ "5.2 MiB in one part" or in how many."""
    parts = 1 if size <= ONE_PUT else -(-size // max(PART, -(-size // MOST_PARTS)))
    return f"{format_size(size)} in {parts} part{'s' if parts > 1 else ''}"
