"""SwanLab Launch on loopback: its API and Tencent's object store, both with TLS from our own CA.

The SDK fixes the host name of the object store, so requests go through this service as a proxy.
HTTPS_PROXY points to it, it accepts CONNECT, and it handles TLS for `*.cos.REGION.myqcloud.com`.
`Service.environ` has the variables that a client needs. Like the real service, it verifies the key,
session cookie, session token and the store's signature (recomputed with the SDK's signer).
`faults` maps "METHOD path" to the faults of its next responses.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from harness.loopback import Handler

KEY = "abcDEF123456789012345"
BUCKET = "code-1250000000"
REGION = "ap-loopback"
PREFIX = "user7"
STORE_HOST = f"{BUCKET}.cos.{REGION}.myqcloud.com"


@dataclass
class Service:
    """State and settings. `objects`: key -> bytes. `asked`: "METHOD path" of requests, in order."""

    folder: Path
    key: str = KEY
    datasets: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"data01": {"name": "wiki", "status": "SUCCESS"}}
    )
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    # A fault is a status, "stall", "trickle", "cut", or a body.
    faults: dict[str, list[Any]] = field(default_factory=dict)
    states: list[str] = field(default_factory=lambda: ["QUEUING", "RUNNING", "COMPLETED"])
    tells_id: bool = True
    lives: float = 3600.0
    environ: dict[str, str] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, name: str) -> Any:
        left = self.faults.get(name)
        return left.pop(0) if left else None


class _Handler(Handler):
    protocol_version = "HTTP/1.1"
    service: Service

    def _faulty(self, name: str) -> bool:
        """Apply the next fault of `name`, and return whether there was one."""
        fault = self.service.next_fault(name)
        if fault is None:
            return False
        if fault == "stall":
            self.service.released.wait(30)
            self.close_connection = True
        elif fault == "trickle":
            self.send_response(200)
            self.send_header("content-length", "100000")
            self.end_headers()
            while not self.service.released.wait(0.2):
                self.wfile.write(b" ")
                self.wfile.flush()
        elif fault == "cut":
            self.close_connection = True
        elif fault == "redirect":
            self.send(302, b"", location="https://elsewhere.invalid/api")
        elif isinstance(fault, int):
            self.send(fault, b'{"message": "no"}')
        else:
            self.send(200, fault)
        return True


class _Api(_Handler):
    def _serve(self) -> None:
        service = self.service
        url = urlsplit(self.path)
        path = url.path.removeprefix("/api")
        raw = self.body()
        body = json.loads(raw) if raw else None
        name = f"{self.command} {path}"
        service.asked.append(name)
        service.bodies.append(body)
        if self._faulty(name):
            return None
        if name == "POST /login/api_key":
            ok = self.headers.get("authorization") == service.key
            user = {
                "sid": "s1",
                "expiredAt": "2030-01-01T00:00:00Z",
                "userInfo": {"username": "me"},
            }
            return self.send_json(user) if ok else self.send_json({"message": "bad key"}, 401)
        if self.headers.get("cookie") != "sid=s1" or self.headers.get("authorization"):
            return self.send_json({"message": "no session"}, 401)
        answer = self._route(name, body, parse_qs(url.query))
        status, value = answer or (404, {})
        return self.send_json(value, status)

    do_GET = do_POST = do_PATCH = _serve

    def _route(self, name: str, body: Any, query: dict[str, list[str]]) -> tuple[int, Any] | None:
        service = self.service
        if name == "GET /user/codes/sts":
            secrets = {"tmpSecretId": "id1", "tmpSecretKey": "secret1", "sessionToken": "token1"}
            expires = time.time() + service.lives
            where = {"region": REGION, "bucket": BUCKET, "prefix": PREFIX}
            return 200, {**where, "expiredTime": int(expires), "credentials": secrets}
        if name == "POST /task":
            return self._create(body)
        if name == "GET /task":
            return 200, [self._shown(one) for one in list(service.tasks)[: int(query["num"][0])]]
        if name == "GET /task/datasets":
            return 200, [{"cuid": cuid, **one} for cuid, one in service.datasets.items()]
        if name == "POST /task/dataset":
            service.datasets["data02"] = {**body, "status": "UPLOADING"}
            return 201, {"cuid": "data02"}
        if name == "PATCH /task/dataset/status":
            service.datasets[body["cuid"]]["status"] = body["status"]
            return 200, {}
        if name == "PATCH /task/status" and body["cuid"] in service.tasks:
            service.tasks[body["cuid"]]["states"] = [body["status"]]
            return 200, {}
        task = name.removeprefix("GET /task/")
        return (200, self._shown(task, move=True)) if task in service.tasks else None

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        service = self.service
        if any(one not in service.datasets for one in body.get("datasets", [])):
            return 404, {}
        if body.get("combo") not in (None, "RTX3090-1", "H800-1"):
            return 401, {}
        assert body["src"] in service.objects and body["conf"] == {"key": service.key}
        cuid = f"task{len(service.tasks):02d}"
        service.tasks[cuid] = {**body, "states": list(service.states)}
        return 201, {"cuid": cuid} if service.tells_id else {}

    def _shown(self, cuid: str, *, move: bool = False) -> dict[str, Any]:
        task = self.service.tasks[cuid]
        states = task["states"]
        status = states.pop(0) if move and len(states) > 1 else states[0]
        shown = {
            "cuid": cuid,
            "name": task["name"],
            "python": task["python"],
            "index": task["index"],
            "combo": None,
        }
        shown |= {"status": status, "createdAt": "2024-12-01T00:00:00Z"}
        if status == "COMPLETED":
            key = f"{PREFIX}/outputs/{cuid}/out.zip"
            self.service.objects[key] = b"the output" * 1000
            shown["output"] = {"path": f"{cuid}/out.zip", "size": 10_000}
        if status == "CRASHED":
            shown["msg"] = "Traceback: boom"
        return shown


class _Store(_Handler):
    """The object store, and the proxy that leads to it."""

    context: ssl.SSLContext

    def do_CONNECT(self) -> None:
        assert self.path == f"{STORE_HOST}:443", self.path
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        try:
            self.connection = self.request = self.context.wrap_socket(
                self.connection, server_side=True
            )
        except (ssl.SSLError, ConnectionError):
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")
        self.close_connection = False

    def _serve(self) -> None:
        service = self.service
        url = urlsplit(self.path)
        key = unquote(url.path).lstrip("/")
        query = parse_qs(url.query, keep_blank_values=True)
        body = self.body()
        verb = self.command
        what = (
            "part"
            if "partNumber" in query
            else "upload"
            if "uploads" in query or "uploadId" in query
            else "object"
        )
        name = f"{verb} {what}"
        service.asked.append(f"{name} {key}")
        if self._faulty(name):
            return None
        if self.headers.get("x-cos-security-token") != "token1" or not self._is_signed(url.path):
            return self._xml(
                403, "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
            )
        if name == "PUT object":
            service.objects[key] = body
            return self.send(200, b"", ETag='"e"')
        if name == "POST upload" and "uploads" in query:
            service.parts["u1"] = {}
            return self._xml(
                200,
                "<InitiateMultipartUploadResult><UploadId>u1</UploadId>"
                "</InitiateMultipartUploadResult>",
            )
        if name == "PUT part":
            service.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
            return self.send(200, b"", ETag='"e"')
        if name == "POST upload":
            parts = service.parts.pop(query["uploadId"][0])
            service.objects[key] = b"".join(parts[number] for number in sorted(parts))
            return self._xml(
                200,
                f"<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket>"
                "<ETag>e</ETag></CompleteMultipartUploadResult>",
            )
        if name == "DELETE upload":
            service.parts.pop(query["uploadId"][0], None)
            return self.send(204, b"")
        if name == "GET object" and key in service.objects:
            return self.send(200, service.objects[key], Content_Type="application/octet-stream")
        return self._xml(404, "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _xml(self, status: int, text: str) -> None:
        self.send(status, f'<?xml version="1.0"?>{text}'.encode(), Content_Type="application/xml")

    def _is_signed(self, path: str) -> bool:
        """Verify a signature as in https://cloud.tencent.com/document/product/436/7778."""
        import hashlib
        import hmac

        fields = dict(
            pair.split("=", 1)
            for pair in self.headers.get("authorization", "").split("&")
            if "=" in pair
        )
        query = {
            k.lower(): v[0]
            for k, v in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
        }

        def listed(names: str, values: dict[str, str]) -> str:
            from urllib.parse import quote

            return "&".join(
                f"{n}={quote(values.get(n, ''), safe='-_.~')}" for n in names.split(";") if n
            )

        headers = {name.lower(): value for name, value in self.headers.items()}
        text = "\n".join(
            [self.command.lower(), unquote(path), listed(fields.get("q-url-param-list", ""), query),
             listed(fields.get("q-header-list", ""), headers), ""]
        )  # fmt: skip
        span = fields.get("q-sign-time", "")
        sign_key = hmac.new(b"secret1", span.encode(), hashlib.sha1).hexdigest()
        to_sign = f"sha1\n{span}\n{hashlib.sha1(text.encode()).hexdigest()}\n"
        signature = hmac.new(sign_key.encode(), to_sign.encode(), hashlib.sha1).hexdigest()
        return fields.get("q-ak") == "id1" and hmac.compare_digest(
            signature, fields.get("q-signature", "")
        )


@contextmanager
def swanlab_service(folder: Path) -> Iterator[Service]:
    """A running service. `environ` has the variables by which a client finds and trusts it."""
    service = Service(folder)
    certificate, context = make_certificate(folder)
    api = ThreadingHTTPServer(("127.0.0.1", 0), type("Api", (_Api,), {"service": service}))
    api.socket = context.wrap_socket(api.socket, server_side=True, do_handshake_on_connect=False)
    store = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Store", (_Store,), {"service": service, "context": context})
    )
    service.environ = {
        "SWANLAB_API_HOST": f"https://127.0.0.1:{api.server_port}/api",
        "SWANLAB_API_KEY": KEY,
        "HTTPS_PROXY": f"http://127.0.0.1:{store.server_port}",
        "NO_PROXY": "127.0.0.1",
        "REQUESTS_CA_BUNDLE": str(certificate),
    }
    for server in (api, store):
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield service
    finally:
        service.released.set()
        for server in (api, store):
            server.shutdown()
            server.server_close()


def make_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Create a self-signed certificate for 127.0.0.1 and the store. It is its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName(f"*.cos.{REGION}.myqcloud.com"),
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = folder / "ca.pem"
    secret = folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return certificate, context
