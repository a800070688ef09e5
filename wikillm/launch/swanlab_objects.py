"""SwanLab's object store (Tencent COS) through Tencent's SDK (extra `wikillm[swanlab-launch]`).

Files up to 1 MiB are sent in one PUT, larger files in parts, as the old client did. If a part
fails, the upload ends and the sent parts are removed. Every request has a limit of `timeout`
seconds and is repeated once after a 5xx or a broken connection. Credentials are temporary, and
renewed before they expire. A 403 in the first seconds of new credentials is tried again, since the
store may not know them yet.
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
from wikillm.launch.swanlab_api import CONTRACT, Credentials

ONE_PUT = 2**20
PART = 8 * 2**20
MAX_PARTS = 10_000
_REFRESH_BEFORE = 120.0
_SETTLES_WITHIN = 3.0


class ObjectStore:
    """The user's part of the bucket: keys are relative to the prefix in the credentials."""

    def __init__(self, ask: Callable[[], Credentials], *, timeout: float = 30.0) -> None:
        check_installed()
        self._request_credentials = ask
        self._timeout = timeout
        self._credentials: Credentials | None = None
        self._client: Any = None
        self._since = 0.0

    @property
    def credentials(self) -> Credentials:
        """Credentials that are valid for at least two more minutes."""
        if self._credentials is None or self._credentials.expires - time.time() < _REFRESH_BEFORE:
            from qcloud_cos import CosConfig, CosS3Client

            fresh = self._request_credentials()
            config = CosConfig(
                Region=fresh.region,
                SecretId=fresh.keys.id,
                SecretKey=fresh.keys.key,
                Token=fresh.keys.token,
                Scheme="https",
                Timeout=(min(5.0, self._timeout), self._timeout),
            )
            # Its log has the session token at debug level, answers of the store at error level.
            logging.getLogger("qcloud_cos").setLevel(logging.CRITICAL + 1)
            self._client = CosS3Client(config, retry=1)
            self._credentials = fresh
            self._since = time.monotonic()
        return self._credentials

    def put(self, key: str, path: Path, on_bytes: Callable[[int], None] = lambda sent: None) -> str:
        """Upload a file; returns the whole key. Raises MachineError if the store fails."""
        size = path.stat().st_size
        if size > ONE_PUT:
            return self._put_parts(key, path, size, on_bytes)
        whole, _ = self._run(key, "put_object", Body=path.read_bytes())
        on_bytes(size)
        return whole

    def get(self, key: str, target: Path) -> None:
        """Download an object to `target`, complete or not at all."""
        staged = target.with_name(f".{target.name}.{os.getpid()}{STAGING_SUFFIX}")
        target.parent.mkdir(parents=True, exist_ok=True)

        def load(answer: Any) -> None:
            with open(staged, "wb") as file:
                for piece in answer["Body"].get_stream(PART):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            expected = int(answer.get("Content-Length", -1))
            if expected not in (-1, staged.stat().st_size):
                raise ConnectionError(f"{staged.stat().st_size} of {expected} bytes arrived")

        try:
            self._run(key, "get_object", load)
            rename_durably(staged, target)
        finally:
            staged.unlink(missing_ok=True)

    def _put_parts(self, key: str, path: Path, size: int, on_bytes: Callable[[int], None]) -> str:
        part_size = max(PART, -(-size // MAX_PARTS))
        _, upload = self._run(key, "create_multipart_upload", lambda answer: answer["UploadId"])
        parts: list[dict[str, Any]] = []
        try:
            with open(path, "rb") as file:
                while body := file.read(part_size):
                    part = {"Body": body, "PartNumber": len(parts) + 1, "UploadId": upload}
                    _, tag = self._run(key, "upload_part", lambda answer: answer["ETag"], **part)
                    parts.append({"PartNumber": part["PartNumber"], "ETag": tag})
                    on_bytes(len(body))
            whole, _ = self._run(
                key, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Part": parts}
            )
            return whole
        except BaseException:
            self._abort(key, upload)
            raise

    def _abort(self, key: str, upload: str) -> None:
        """Remove the sent parts, which use storage. Never raises: the first error is reported."""
        try:
            fresh = self.credentials
            self._client.abort_multipart_upload(
                Bucket=fresh.bucket, Key=f"{fresh.prefix}/{key}", UploadId=upload
            )
        except Exception as error:
            logging.getLogger("wikillm").warning(
                "parts of %s may be left in the store: %s", key, type(error).__name__
            )

    def _run(
        self, key: str, name: str, read: Callable[[Any], Any] = lambda answer: None, **values: Any
    ) -> tuple[str, Any]:
        """Call the method `name` of the SDK. Returns the whole key and `read(answer)`.

        Raises MachineError if the store refuses, fails or does not answer.
        """
        from qcloud_cos.cos_exception import CosClientError, CosServiceError

        while True:
            fresh = self.credentials
            whole = f"{fresh.prefix}/{key}"
            try:
                answer = getattr(self._client, name)(Bucket=fresh.bucket, Key=whole, **values)
                return whole, read(answer)
            except CosServiceError as error:
                code = error.get_status_code()
                if code == 403 and time.monotonic() - self._since < _SETTLES_WITHIN:
                    time.sleep(1.0)
                    continue
                # The error's other getters fail unless the answer is XML.
                got = f"{whole}: {code}: {_plain(error.get_digest_msg())}"
                raise MachineError("SwanLab's object store refused the request.", got=got) from None
            except (KeyError, ParseError) as error:
                got = f"{whole}: {type(error).__name__} {_plain(error)}"
                raise MachineError(
                    "SwanLab's object store answers in an unknown form.",
                    got=f"{got}\nthe contract is {CONTRACT}",
                ) from None
            except (CosClientError, OSError) as error:  # requests' errors are OSErrors
                got = f"bucket {fresh.bucket} in {fresh.region}: {_plain(error)}"
                raise MachineError(
                    "SwanLab's object store does not answer.",
                    got=f"{got}\nthe contract is {CONTRACT}",
                    fix="try again; a proxy is taken from HTTPS_PROXY, "
                    "its certificate from REQUESTS_CA_BUNDLE",
                ) from None


def check_installed() -> None:
    """Raise MachineError if Tencent's SDK is not installed, before anything is sent."""
    try:
        import qcloud_cos  # noqa: F401
    except ImportError:
        what = "Uploading to SwanLab needs Tencent's COS package."
        raise MachineError(what, fix='pip install "wikillm[swanlab-launch]"') from None


def _plain(value: object) -> str:
    """An error's text as one short line, without the signature of an address."""
    text = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return text.partition("?")[0][:300]
