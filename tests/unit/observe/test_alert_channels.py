"""Messages arrive at real servers, and a failure says why without showing the secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from harness.alert_receivers import HookServer, hook_server, mail_server

from wikillm.config.load import load
from wikillm.config.schema_alerts import AlertsSection
from wikillm.core.errors import ConfigError
from wikillm.observe import alert_channels
from wikillm.observe.alert_channels import deliver

TOKEN = "t0k3n-canary-in-the-path"
MESSAGE = {
    "event": "lost", "run": "wiki", "run_dir": "/runs/wiki", "host": "node1", "step": 1200,
    "exit_code": 3, "reason": "rank 3 was killed by signal 9.", "note": "", "time": "now",
}  # fmt: skip


@pytest.fixture
def hooks() -> Iterator[HookServer]:
    with hook_server() as server:
        yield server


def test_every_hook_gets_one_message_in_its_own_form(hooks: HookServer) -> None:
    names = ("webhook", "dingtalk", "lark", "wecom", "slack", "discord")
    environ = {name.upper(): f"{hooks.url}/{name}?access_token={TOKEN}" for name in names}
    environ |= {"DING_SECRET": "SEC-of-the-robot", "LARK_SECRET": "of-the-robot"}
    section = AlertsSection(
        **{name: name.upper() for name in names},
        dingtalk_secret="DING_SECRET",
        lark_secret="LARK_SECRET",
    )
    assert deliver(section, MESSAGE, environ) == dict.fromkeys(names)
    heard = {urlsplit(path).path[1:]: (urlsplit(path).query, body) for path, body in hooks.heard}
    assert len(hooks.heard) == len(names) and heard.keys() == set(names)
    text = "WikiLLM: wiki lost a rank\nrank 3 was killed by signal 9.\n"
    text += "node1, /runs/wiki, step 1,200, exit code 3"
    assert heard["slack"][1] == {"text": text} and heard["discord"][1] == {"content": text}
    plain = {"msgtype": "text", "text": {"content": text}}
    assert heard["wecom"][1] == plain and heard["dingtalk"][1] == plain
    assert heard["webhook"][1] == {**MESSAGE, "text": text}
    query = parse_qs(heard["dingtalk"][0])
    signed = f"{query['timestamp'][0]}\nSEC-of-the-robot".encode()
    expected = hmac.new(b"SEC-of-the-robot", signed, hashlib.sha256).digest()
    assert query["sign"] == [base64.b64encode(expected).decode()]
    lark = heard["lark"][1]
    key = f"{lark['timestamp']}\nof-the-robot".encode()
    assert lark["sign"] == base64.b64encode(hmac.new(key, b"", hashlib.sha256).digest()).decode()


def test_an_email_needs_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mail_server(tmp_path, "right-canary") as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
        section = AlertsSection(
            email_to="me@example.com", email_from="run@example.com", email_password="PASSWORD",
            smtp_server="127.0.0.1", smtp_port=server.port,
        )  # fmt: skip
        assert deliver(section, MESSAGE, {"PASSWORD": "right-canary"}) == {"email": None}
        why = deliver(section, MESSAGE, {"PASSWORD": "wrong-canary"})["email"]
    (mail,) = server.mails
    assert mail["Subject"] == "WikiLLM: wiki lost a rank" and mail["To"] == "me@example.com"
    assert "rank 3 was killed" in mail.get_payload(0).get_payload(decode=True).decode()
    assert why is not None and "Authentication" in why and "canary" not in why


def test_a_failure_says_why_and_no_secret(
    hooks: HookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_channels, "SEND_SECONDS", 1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = closed.getsockname()[1]
        environ = {
            "REFUSED": f"http://127.0.0.1:{port}/services/{TOKEN}",
            "DECLINED": f"{hooks.url}/robot?access_token={TOKEN}",
            "GONE": f"{hooks.url}/{TOKEN}",
            "SILENT": f"{hooks.url}/silent/{TOKEN}",
            "NO_URL": TOKEN,
        }
        hooks.answers |= {
            f"/robot?access_token={TOKEN}": (200, {"errcode": 310000, "errmsg": f"bad {TOKEN}"}),
            f"/{TOKEN}": (404, f"no hook /{TOKEN}"),
            f"/silent/{TOKEN}": (0, None),
        }
        section = AlertsSection(
            webhook="REFUSED", wecom="DECLINED", slack="GONE", discord="SILENT", lark="NO_URL",
            dingtalk="UNSET",
        )  # fmt: skip
        outcome = deliver(section, MESSAGE, environ)
    said = json.dumps(outcome)
    assert TOKEN not in said and "canary" not in said
    assert outcome["webhook"] == "ConnectionRefusedError: Connection refused"
    assert "bad ***" in str(outcome["wecom"]) and "HTTP 404" in str(outcome["slack"])
    assert outcome["discord"] == "no answer within 1 s"
    assert outcome["lark"] == "NO_URL does not hold a URL"
    assert outcome["dingtalk"] == "the environment has no UNSET (alerts.dingtalk)"


def test_a_message_carries_no_secret_of_the_environment(hooks: HookServer) -> None:
    environ = {"HOOK": f"{hooks.url}/hook", "HF_TOKEN": "canary-of-a-hub"}
    message = {**MESSAGE, "reason": "could not read https://u:canary-pw@host/ with canary-of-a-hub"}
    assert deliver(AlertsSection(webhook="HOOK"), message, environ) == {"webhook": None}
    assert "canary" not in json.dumps(hooks.heard)


def test_an_address_in_the_configuration_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        load(None, [f"alerts.slack=https://hooks.example/{TOKEN}"])
    assert "the name of an environment variable" in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert "alerts.slack=NAME" in (refused.value.fix or "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["alerts.email_to=a@b"], "alerts.smtp_server"),
        (["alerts.lark_secret=A"], "has no effect without alerts.lark"),
        (["alerts.events=failed,lots"], "'lost'"),
    ],
)
def test_an_incomplete_section_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(None, words)
