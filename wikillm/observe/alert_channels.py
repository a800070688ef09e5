"""Send one message through the channels of `alerts`: `python -m wikillm.observe.alert_channels`.

`supervise.alerts` starts this module as a short process, which reads the message from stdin, so
that a slow server never delays training. Chat hooks and e-mail are sent by SwanLab's notification
callbacks. SwanLab's callbacks only log their errors; here they raise them. An error is reported
without the address of a hook, because the address contains the hook's secret.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import requests

from wikillm.config.schema_alerts import AlertsSection
from wikillm.core.log import log_to_file, warn
from wikillm.observe.redact import HIDDEN, environment_secrets, redact_text

SEND_SECONDS = 8.0
"""Limit for all channels together; a launcher may wait this long before it exits."""
CLAIM_SECONDS = 3.0  # to create the claim file
_MAX_REASON = 1200  # Discord takes 2,000 characters
_MIN_PART = 6  # shorter parts of an address are words such as `api`
_HEADLINES = {
    "ended": "has ended",
    "failed": "failed",
    "stopped": "stopped",
    "lost": "lost a rank",
    "stalled": "stalled",
    "spike": "has a loss spike",
    "test": "would send its alerts here: this is a test",
}


class AlertRefusedError(Exception):
    """The service took the request and declined the message."""


def headline(message: Mapping[str, Any]) -> str:
    return f"WikiLLM: {message['run']} {_HEADLINES[message['event']]}"


def text_of(message: Mapping[str, Any]) -> str:
    """The message as text: headline, reason, note, then host, run directory, step, exit code."""
    code = message["exit_code"]
    step = message["step"]
    where = [message["host"], message["run_dir"]]
    where += [f"step {step:,}"] if step is not None else []
    where += [f"exit code {code}"] if code is not None else []
    reason = str(message["reason"])[:_MAX_REASON]
    lines = [headline(message), reason, message["note"], ", ".join(where)]
    return "\n".join(line for line in lines if line)


def deliver(
    alerts: AlertsSection,
    message: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str | None]:
    """Send to all channels at the same time, within SEND_SECONDS.

    Returns {channel: None if the message was sent, else the reason why not}.
    """
    hidden = environment_secrets(environ)
    clean = {
        key: redact_text(value, hidden) if isinstance(value, str) else value
        for key, value in message.items()
    }
    late = f"no answer within {SEND_SECONDS:g} s"
    outcome: dict[str, str | None] = dict.fromkeys(alerts.channels, late)

    def send(channel: str) -> None:
        try:
            _send(channel, alerts, clean, environ)
            outcome[channel] = None
        except Exception as error:
            outcome[channel] = _why(error, _secrets_of(channel, alerts, environ))

    if set(outcome) != {"webhook"}:
        # Import it here: two threads that import it at the same time can deadlock.
        import swanlab.plugin.notification  # noqa: F401
    senders = [threading.Thread(target=send, args=(name,), daemon=True) for name in outcome]
    for sender in senders:
        sender.start()
    deadline = time.monotonic() + SEND_SECONDS
    for sender in senders:
        sender.join(max(0.0, deadline - time.monotonic()))
    return dict(outcome)


def _send(
    channel: str, alerts: AlertsSection, message: Mapping[str, Any], environ: Mapping[str, str]
) -> None:
    missing = alerts.missing(environ)
    for key in (channel, f"{channel}_secret", f"{channel}_password"):
        if key in missing:
            raise AlertRefusedError(f"the environment has no {missing[key]} (alerts.{key})")
    if channel == "email":
        from swanlab.plugin.notification import EmailCallback

        mail = _with_message(EmailCallback, message)(
            sender_email=str(alerts.email_from),
            receiver_email=str(alerts.email_to),
            password=environ[str(alerts.email_password)],
            smtp_server=str(alerts.smtp_server),
            port=alerts.smtp_port,
        )
        mail._send_notification("", None)
        return
    address = environ[getattr(alerts, channel)]
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        raise AlertRefusedError(f"{getattr(alerts, channel)} does not hold a URL")
    if channel == "webhook":
        answer = requests.post(
            address, json={**message, "text": text_of(message)}, timeout=SEND_SECONDS
        )
        answer.raise_for_status()
        return
    secret = getattr(alerts, f"{channel}_secret", None)
    options = {"secret": environ[secret]} if secret else {}
    hook = _with_message(_callback(channel), message)(webhook_url=address, **options)
    hook._send_notification("", None)


def _callback(channel: str) -> Any:
    from swanlab.plugin import notification

    names = {"dingtalk": "DingTalk", "lark": "Lark", "wecom": "WeCom"}
    return getattr(notification, f"{names.get(channel, channel.capitalize())}Callback")


def _with_message(callback: Any, message: Mapping[str, Any]) -> Any:
    """A subclass of SwanLab's callback that sends `message` and raises errors."""

    def refuse(warning: str) -> NoReturn:
        raise AlertRefusedError(warning)

    # The callbacks run inside `safe.block`, which hides errors, and warn through `console`.
    module: Any = sys.modules[callback.__module__]
    module.safe = SimpleNamespace(block=lambda *_, **__: contextlib.nullcontext())
    module.console = SimpleNamespace(info=lambda *_: None, warning=refuse)
    text = text_of(message)
    overrides = {
        "_build_content": lambda *_: text,
        "_build_subject": lambda *_: headline(message),
        "_build_html": lambda *_: f"<pre>{html.escape(text)}</pre>",
    }
    return type(callback.__name__, (callback,), overrides)


def _why(error: BaseException, secrets: Iterable[str]) -> str:
    """The error in one line, without `secrets`, which include the parts of an address."""
    text = str(error)
    if isinstance(error, requests.Timeout):
        text = "no answer in time"
    elif isinstance(error, requests.HTTPError):
        text = f"HTTP {error.response.status_code}: {error.response.text[:200]}"
    elif isinstance(error, requests.JSONDecodeError):
        text = "the answer is not JSON: the address is not a hook of this service"
    elif isinstance(error, OSError):
        # Exceptions of requests contain the address, so only the system's message is kept.
        cause = _innermost(error)
        text = getattr(cause, "strerror", None) or getattr(cause, "smtp_error", b"").decode(
            errors="replace"
        )
        text = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return " ".join(redact_text(text, environment_secrets()).split()) or type(error).__name__


def _innermost(error: BaseException) -> BaseException:
    """The first error of the chain that led to `error`."""
    seen = {id(error)}
    while True:
        inner = (getattr(error, "reason", None), *error.args, error.__cause__, error.__context__)
        causes = [
            cause for cause in inner if isinstance(cause, BaseException) and id(cause) not in seen
        ]
        if not causes:
            return error
        error = causes[0]
        seen.add(id(error))


def _secrets_of(channel: str, alerts: AlertsSection, environ: Mapping[str, str]) -> list[str]:
    """The channel's secrets and the parts of its address, the longest first."""
    keys = (channel, f"{channel}_secret", f"{channel}_password")
    found = set()
    for key in keys:
        value = environ.get(getattr(alerts, key, None) or "", "")
        parts = urlsplit(value)
        pieces = [value, *parts.path.split("/"), *(piece for _, piece in parse_qsl(parts.query))]
        pieces += [parts.query, parts.username or "", parts.password or ""]
        found |= {*pieces, *map(unquote, pieces), base64.b64encode(value.encode()).decode()}
    return sorted((part for part in found if len(part) >= _MIN_PART), key=len, reverse=True)


def _is_ours(claim: str | None, *, is_first: bool) -> bool:
    """Whether this process must send the message, because several nodes may see the same event.

    The process that creates the file `claim` sends the message. If no process can create the file
    (its disk may have been on the lost node), the process with `is_first` sends the message.
    """
    if claim is None:
        return is_first
    created: list[bool] = []

    def create() -> None:
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            created.append(True)
        except FileExistsError:
            created.append(False)
        except OSError:
            created.append(is_first)

    # Create it in a thread, because a call to a lost file system may never return.
    creator = threading.Thread(target=create, daemon=True)
    creator.start()
    creator.join(CLAIM_SECONDS)
    return created[0] if created else is_first


def main() -> None:
    """Send the message that `supervise.alerts` writes to stdin; log a warning for each failure."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # launchers end all processes of a failed run
    request = json.load(sys.stdin)
    if _is_ours(request["claim"], is_first=request["is_first"]):
        outcome = deliver(AlertsSection(**request["alerts"]), request["message"])
        os.environ["RANK"] = "0"  # warnings of this process are printed
        if request["log"] and Path(request["log"]).parent.is_dir():
            log_to_file(Path(request["log"]))
        for channel, why in outcome.items():
            if why is not None:
                event = request["message"]["event"]
                warn(f"the alert {event!r} was not delivered through {channel}: {why}")
    os._exit(0)  # does not join a thread that may still wait for its server


if __name__ == "__main__":
    main()
