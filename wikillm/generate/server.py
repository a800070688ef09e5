"""Serve a model with OpenAI's interface: `transformers serve` with clear errors and a page at `/`.

transformers builds and runs the server. This module adds a page for trying the model, a model list
with only this model, and errors in OpenAI's form where transformers would fail with status 500.
Sampling uses the temperature of the request (transformers decodes greedily unless the folder's
generation_config.json says otherwise). The routes that load, unload or transcribe are closed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import ipaddress
import json
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wikillm.core.errors import ConfigError, MachineError
from wikillm.data.tokenizer.chat_template import read_chat_template
from wikillm.generate.complete import padding_rows
from wikillm.generate.load import pick_device

NEEDED = ("fastapi", "uvicorn", "openai")
_PAGE = Path(__file__).with_name("page.html")
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
}
_READ = ("prompt", "messages", "input", "content", "text")
"""Keys whose text the model reads."""
_NEW_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Keys for the length of the answer."""
MAX_BYTES = 1 << 20
"""Largest body of a request."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHAT = ("/v1/chat/completions", "/v1/responses")
_OPEN = {("GET", "/health"), ("POST", "/v1/completions"), *(("POST", path) for path in _CHAT)}
NO_TEMPLATE = (
    "This is a base model without a chat template: it continues text and does not answer messages. "
    "Fix: send the text as `prompt` to /v1/completions, or export the model with "
    "`wikillm export --chat-template`."
)


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: its address and the name of the model. `stop` ends it."""

    url: str
    name: str
    has_template: bool
    _server: Any

    def is_alive(self) -> bool:
        return bool(self._server._thread.is_alive())

    def stop(self) -> None:
        """End the server; unfinished answers are cut off after two seconds."""
        self._server.kill_server()
        self._server.server.force_exit = True  # otherwise its thread waits for them


def check_can_serve(host: str, port: int) -> None:
    """Check packages, host and port before a model is loaded. Port 0 means any free port.

    Raises ConfigError when `host` is no address of this machine, MachineError when a package is
    missing or the port cannot be used.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(
            "`wikillm serve` needs packages that are not installed.",
            got="missing: " + ", ".join(missing),
            fix="pip install 'wikillm[serve]'",
        )
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            what = f"Port {port} of {host} cannot be used."
            fix = "choose another --port; 0 takes a free port"
            raise MachineError(what, got=error.strerror, fix=fix) from error
        what = f"{host!r} is not an address of this machine."
        raise ConfigError(what, got=error.strerror, fix="--host 127.0.0.1") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def start_server(folder: Path, name: str, *, host: str, port: int, device: str) -> Serving:
    """Load an exported folder and serve it; returns once the server answers requests.

    The folder is not read after that.

    Args:
        name: name of the model for clients.
        port: port to listen on; 0 takes a free port.
        device: auto, cpu, cuda or cuda:N.

    Raises MachineError when the server does not start.
    """
    from transformers.cli import serve
    from transformers.cli.serving import server as building

    has_template = read_chat_template(folder) is not None
    name = re.sub(r"[^\w.-]+", "-", name)  # transformers splits names at @ and :
    build = building.build_server

    def build_extended(manager: Any, *handlers: Any, **named: Any) -> Any:
        app = build(manager, *handlers, **named)
        for loaded in manager.loaded_models.values():
            _sample_by_request(loaded.model, loaded.processor)
            if has_template:
                _keep_prompt_out_of_answers(loaded.model, loaded.processor)
        max_tokens = loaded.model.config.max_position_embeddings
        _extend(
            app,
            name,
            has_template,
            partial(_problem, tokenizer=loaded.processor, max_tokens=max_tokens),
        )
        _refuse_other_origins(app, is_local=is_loopback(host))
        return app

    # transformers opens the model's name as a path, so the name is a link in an empty folder.
    target = folder.resolve()  # resolve a relative path before the working directory changes
    with tempfile.TemporaryDirectory(prefix="wikillm-serve-") as place, contextlib.chdir(place):
        Path(name).symlink_to(target)
        with _replaced(building, "build_server", build_extended):
            server = serve.Serve(
                force_model=name,
                host=host,
                port=port,
                device=str(pick_device(device)),
                log_level="error",
                non_blocking=True,
            )
    port = _wait_until_started(server, host, port)
    shown = f"[{host}]" if ":" in host else host
    return Serving(f"http://{shown}:{port}", name, has_template, server)


def _wait_until_started(server: Any, host: str, port: int) -> int:
    """Wait for the server and return its port. Its thread ends if it cannot bind the port."""
    while not server.server.started:
        if not server._thread.is_alive():
            what = f"The server did not start on port {port} of {host}."
            raise MachineError(what, fix="choose another --port; 0 takes a free port")
        time.sleep(0.02)
    return int(server.server.servers[0].sockets[0].getsockname()[1])


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _sample_by_request(model: Any, tokenizer: Any) -> None:
    """Sample unless a request's temperature is 0; never sample ids that pad the vocabulary."""
    model.generation_config.do_sample = True
    model.generation_config.top_k = 0
    model.generation_config.suppress_tokens = padding_rows(tokenizer, model)


def _keep_prompt_out_of_answers(model: Any, tokenizer: Any) -> None:
    """If the chat template is not Qwen's, make transformers return the text of an answer only.

    transformers parses the answers of every Qwen model by the markers of Qwen's own template; with
    a prompt without these markers it returns the prompt as part of the answer.
    """
    messages = [{"role": "user", "content": "Q"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if tokenizer.response_template is not None or "<|im_start|>assistant\n" in prompt:
        return
    end_ids = model.generation_config.eos_token_id
    ends = tokenizer.convert_ids_to_tokens(end_ids if isinstance(end_ids, list) else [end_ids])
    content = {"close": list(dict.fromkeys([*ends, tokenizer.eos_token])), "content": "text"}
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": r"\Z",  # the answer begins where the prompt ends
        "fields": {"content": content},
    }


def _refuse(status: int, message: str, code: str | None = None) -> Any:
    """An error in OpenAI's form."""
    from fastapi.responses import JSONResponse

    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def _refuse_other_origins(app: Any, *, is_local: bool) -> None:
    """Refuse long bodies, and requests that a page of another site makes a browser send.

    A site can send requests to 127.0.0.1, and can read the answers once its own name resolves to
    this address.
    """
    from fastapi import Request

    @app.middleware("http")
    async def refuse(request: Request, call_next: Any) -> Any:
        own = request.headers.get("host", "")
        origin = request.headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != own
        if is_foreign or (is_local and not is_loopback(request.url.hostname or "")):
            return _refuse(403, f"This server takes no requests of {origin or own}.")
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdecimal() and int(length) <= MAX_BYTES):
            return _refuse(413, f"A request must state its length, at most {MAX_BYTES:,} bytes.")
        return await call_next(request)


def _extend(
    app: Any, name: str, has_template: bool, problem_of: Callable[[str, bytes], str | None]
) -> None:
    """Add the page, the list of models and the errors to transformers' application."""
    from fastapi import Request
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.exceptions import HTTPException

    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "wikillm"}
    model["has_chat_template"] = has_template
    answers = {
        "/": HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=_PAGE_HEADERS),
        "/v1/models": JSONResponse({"object": "list", "data": [model]}),
        f"/v1/models/{name}": JSONResponse(model),
    }

    @app.middleware("http")
    async def answer_or_refuse(request: Request, call_next: Any) -> Any:
        path = request.url.path
        if request.method == "GET" and path in answers:
            return answers[path]
        if (request.method, path) not in _OPEN:
            return _refuse(404, f"There is no {request.method} {path} on this server.")
        if path in _CHAT and not has_template:
            return _refuse(400, NO_TEMPLATE, "no_chat_template")
        if request.method == "POST" and (problem := problem_of(path, await request.body())):
            return _refuse(400, problem)
        try:
            return await call_next(request)
        except (ValueError, TypeError, OverflowError) as error:  # values that transformers refuses
            return _refuse(400, str(error).partition("\n")[0][:300])

    @app.exception_handler(HTTPException)
    async def as_openai(request: Request, error: HTTPException) -> JSONResponse:
        return _refuse(error.status_code, str(error.detail))


def _texts(value: Any) -> Iterator[str]:
    """The texts in a request that the model reads."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts([value[key] for key in _READ if key in value])


def _problem(path: str, body: bytes, tokenizer: Any, max_tokens: int) -> str | None:
    """The error in a request that transformers would answer with status 500, or None.

    Args:
        max_tokens: number of tokens that the model reads.
    """
    try:
        request = json.loads(body)
        texts = "\n".join(_texts(request))
    except (ValueError, RecursionError):
        return "The request is not JSON."
    if not isinstance(request, dict):
        return "The request is not a JSON object."
    if _SURROGATE.search(texts):
        return "The text has half of a character: a surrogate without its pair."
    if path == "/v1/completions" and request.get("prompt") in (None, "", []):
        return "The prompt is empty. Fix: send the beginning of a text."
    if path == "/v1/chat/completions":
        messages = request.get("messages")
        rows = messages if isinstance(messages, list) else []
        if not rows or not all(isinstance(row, dict) and "role" in row for row in rows):
            return "`messages` is not a list of messages with role and content."
    stop = request.get("stop")
    stops = stop if isinstance(stop, list) else [stop]
    if stop is not None and not (stops and all(isinstance(text, str) and text for text in stops)):
        return "`stop` is neither a text nor a list of texts."
    # Without a limit, an answer beyond the context would keep all other requests waiting.
    try:
        new = max(int(request.get(key) or 0) for key in _NEW_TOKENS)
    except (ValueError, TypeError, OverflowError):
        return "The number of tokens to write is not a number."
    tokens = len(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    if tokens + max(0, new) > max_tokens:
        answer = f" and its answer up to {new:,}" if new > 0 else ""
        return (
            f"The text has {tokens:,} tokens{answer}, and the model reads at most {max_tokens:,}."
        )
    return None
