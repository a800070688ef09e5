"""A small OSS server on loopback: object GET with ranges, and ListObjects, as documented.

Ranges are inclusive. A range that ends beyond the object is ignored, and the whole object is sent
with 200. Keys are compared by name only. Requests must be signed; the signature is not verified.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from harness.loopback import Handler, serving

KEY_ID = "loopback-key"


@dataclass
class OssServer:
    """`objects` by key, in the only bucket, `texts`. `log` has (key, range).

    `cuts`: the next bodies end after this many bytes.
    """

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)


class _Handler(Handler):
    state: OssServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if not re.match(rf"OSS {KEY_ID}:.+", self.headers.get("Authorization", "")):
            self._send(
                403,
                _error("InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist."),
            )
        elif bucket != "texts":
            self._send(404, _error("NoSuchBucket", "The specified bucket does not exist."))
        elif not key:
            self._send(200, self._listing({k: v[0] for k, v in parse_qs(parts.query).items()}))
        elif key not in self.state.objects:
            self._send(404, _error("NoSuchKey", "The specified key does not exist."))
        else:
            self._object(key, self.state.objects[key])

    def _object(self, key: str, content: bytes) -> None:
        wanted = self.headers.get("Range", "")
        self.state.log.append((key, wanted))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if asked and int(asked[2]) < len(content):
            first = int(asked[1])
            last = int(asked[2])
            self._send(206, content[first : last + 1], f"bytes {first}-{last}/{len(content)}")
        else:
            self._send(200, content)

    def _listing(self, query: dict[str, str]) -> bytes:
        prefix = query.get("prefix", "")
        delimiter = query.get("delimiter", "")
        found = ""
        folders = set()
        for key, content in sorted(self.state.objects.items()):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            found += (
                f"<Contents><Key>{escape(key)}</Key>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{hashlib.md5(content).hexdigest()}</ETag>"
                f"<Type>Normal</Type><Size>{len(content)}</Size>"
                "<StorageClass>Standard</StorageClass></Contents>"
            )
        found += "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>"
            for one in sorted(folders)
        )
        return (
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()
        )

    def _send(self, status: int, body: bytes, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if status < 300 and content_range and self.state.cuts:
            body = body[: self.state.cuts.pop(0)]
        self.wfile.write(body)


def _error(code: str, message: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def serve_oss() -> AbstractContextManager[OssServer]:
    """Serve an empty bucket on a free port of 127.0.0.1."""
    return serving(_Handler, OssServer())
