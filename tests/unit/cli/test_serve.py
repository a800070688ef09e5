"""`wikillm serve` in a process of its own: the openai client asks, Chromium shows its page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from harness.browser import CHROMIUM, WHY_NOT, Page, chromium
from harness.ranks import start_ranks
from harness.terminal import command_on_terminal, terminal
from harness.tiny_model import tiny_model, write_checkpoint, write_tokenizer

from wikillm.cli.main import main
from wikillm.core.errors import ExitCode
from wikillm.core.files import write_json
from wikillm.generate.server import MAX_BYTES

openai = pytest.importorskip("openai", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
LINES = ["从前有座山，山里有座庙。", "The history of it."] * 20
PLAIN = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
CHINESE = "Mozilla/5.0 zh"


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[Any]:
    """A client of `wikillm serve FOLDER`; at the end Ctrl-C must end the server with code 0."""
    words = ["serve", str(folder), "--port", str(port), "--device", "cpu"]
    with terminal(width=300) as tty:
        channels, (process,) = start_ranks(command_on_terminal, 1, (words, tty.path), {})
        tty.wait_for("api_key=")
        (url,) = re.findall(r"base_url='(\S+)'", tty.text)
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        tty.send("\x03")
        assert channels[0].poll(60), tty.text
        assert channels[0].recv() == ("ok", 0), tty.text
        process.join(timeout=10)
    assert "Traceback" not in tty.text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny@zh"
    write_checkpoint(run, tiny_model(), step=7)
    write_tokenizer(run / "tokenizer", LINES)
    (run / "config.resolved.yaml").write_text("run: {name: tiny@zh, seed: 1}\n")
    return run


@pytest.fixture(scope="module")
def base(run: Path) -> Iterator[Any]:
    with served(run) as client:
        yield client


@pytest.fixture(scope="module")
def with_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "talker"
    tiny_model().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(PLAIN)
    return write_tokenizer(folder, LINES)


@pytest.fixture(scope="module")
def talker(with_template: Path) -> Iterator[Any]:
    with served(Path(os.path.relpath(with_template))) as client:  # as typed in a shell
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    with chromium() as page:
        yield page


def test_a_run_is_exported_and_completes_texts(base: Any) -> None:
    (model,) = base.models.list().data
    assert model.id == "tiny-zh-7" == base.models.retrieve(model.id).id
    options = {"model": model.id, "prompt": "从前有座山", "max_tokens": 12, "seed": 3}
    whole = base.completions.create(**options, temperature=0)
    assert whole.choices[0].text and 0 < whole.usage.completion_tokens <= 12
    chunks = list(base.completions.create(**options, temperature=0, stream=True))
    streamed = "".join(chunk.choices[0].text for chunk in chunks)
    assert streamed.rstrip("\ufffd") == whole.choices[0].text.rstrip("\ufffd")
    # A temperature above 0 samples, and the seed decides what.
    drawn = [
        base.completions.create(**options | {"seed": seed}, temperature=1.5).choices[0].text
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_chat_request_without_a_template_is_refused_with_the_fix(base: Any) -> None:
    asked = {"model": "tiny-zh-7", "messages": [{"role": "user", "content": "你好"}]}
    for options in ({}, {"stream": True}):
        with pytest.raises(openai.BadRequestError, match="base model") as caught:
            base.chat.completions.create(**asked, **options)
        assert caught.value.code == "no_chat_template"
        assert caught.value.type == "invalid_request_error"
        assert "/v1/completions" in str(caught.value) and "--chat-template" in str(caught.value)


def test_other_mistakes_are_refused_in_the_same_form(base: Any) -> None:
    for options in ({"model": "other", "prompt": "a"}, {"model": "tiny-zh-7", "prompt": ""}):
        with pytest.raises(openai.BadRequestError) as caught:
            base.completions.create(**options)
        assert caught.value.body["message"]
    for path in ("/load_model", "/reset", "/v1/audio/transcriptions"):
        with pytest.raises(openai.NotFoundError, match="on this server"):
            base.post(path.removeprefix("/v1"), cast_to=object, body={"model": "/etc"})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"[" * 200_000, {}, 400),
        (b'{"prompt": "half of an emoji: \\ud83d"}', {}, 400),
        (b'{"prompt": "a", "max_tokens": -1}', {}, 400),
        (b'{"prompt": "a", "max_tokens": 1000000000}', {}, 400),  # hours in which all others wait
        (b'{"prompt": "a", "max_tokens": "many"}', {}, 400),
        (b'{"prompt": "a", "stop": [1]}', {}, 400),
        (b'{"prompt": "a", "stop": []}', {}, 400),
        (b'{"prompt": "a", "temperature": -5}', {}, 400),
        (b'{"prompt": "' + "从前 ".encode() * 50_000 + b'"}', {}, 400),  # more than the model reads
        (b'{"prompt": "' + b"a" * MAX_BYTES + b'"}', {}, 413),
        (b'{"prompt": "a"}', {"Host": "a-name-of-theirs.example"}, 403),
        (b'{"prompt": "a"}', {"Origin": "http://a-site.example"}, 403),
        (b'{"prompt": "a"}', {"Origin": "null"}, 403),
        (b'{"prompt": "a", "max_tokens": 1}', {"Host": "localhost:1"}, 200),
    ],
    ids=lambda value: str(value)[:40],  # pytest puts the id into the environment of programs
)
def test_what_a_stranger_or_a_page_of_another_site_sends(
    base: Any, body: bytes, headers: dict[str, str], status: int
) -> None:
    kind = {"Content-Type": "application/json", **headers}
    answer = requests.post(f"{base.base_url}completions", data=body, headers=kind, timeout=60)
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]["message"]


def test_a_model_with_a_template_answers_messages(talker: Any) -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    options: dict[str, Any] = {"model": "talker", "max_tokens": 12, "temperature": 1.5, "seed": 3}
    options["messages"] = [*messages, {"role": "user", "content": "山"}]
    whole = talker.chat.completions.create(**options)
    answer = whole.choices[0].message.content
    assert answer and "u:" not in answer and whole.usage.prompt_tokens > 6
    chunks = talker.chat.completions.create(**options, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed.strip("\n\ufffd") == answer.strip("\n\ufffd")
    with pytest.raises(openai.BadRequestError, match="list of messages"):
        talker.chat.completions.create(model="talker", messages=[])


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("kind", ["base", "talker"])
def test_the_page_sends_a_text_and_shows_what_comes_back(
    browser: Page, kind: str, width: int, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue(kind).base_url).removesuffix("v1/")
    in_chinese = width == 400
    language = "zh-CN" if in_chinese else "en-US"
    browser.call("Emulation.setUserAgentOverride", userAgent=CHINESE, acceptLanguage=language)
    browser.requests.clear()
    browser.open(url, width, dark=in_chinese)
    wait_until(browser, "!document.getElementById('send').disabled")
    note = browser.value("document.getElementById('note').textContent")
    if kind == "base":
        english = "A base model continues your text; it does not answer questions."
        assert note == ("这是基座模型：它续写你的文字，不回答问题。" if in_chinese else english)
    text = "从前<img src=x onerror=alert(1)>"
    browser.value("document.getElementById('most').value = 12")
    browser.call("Input.insertText", text=text)
    browser.press("Enter")
    told = "每秒" if in_chinese else "tokens/s"
    wait_until(browser, f"document.getElementById('state').textContent.includes('{told}')")
    assert re.search("[1-9]", browser.value("document.getElementById('state').textContent"))
    log = browser.value("document.getElementById('log').textContent")
    assert log.startswith(text) and len(log) > len(text)
    assert browser.value("document.querySelectorAll('img').length") == 0
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert all(each.startswith((url, "data:")) for each in browser.requests)
    assert browser.problems == []


def wait_until(page: Page, condition: str) -> None:
    for _ in range(3000):
        if page.value(condition):
            return
        time.sleep(0.02)
    raise AssertionError(f"{condition}: {page.value('document.body.innerText')}")


def test_the_process_does_not_wait_for_an_answer(with_template: Path, tmp_path: Path) -> None:
    """In a process that ends like a user's: the interpreter joins the server's thread."""
    folder = Path(shutil.copytree(with_template, tmp_path / "long"))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"max_position_embeddings": 10**7})
    words = ["serve", str(folder), "--port", "0", "--device", "cpu"]
    command = [sys.executable, "-m", "wikillm", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"base_url='(\S+)'", "".join(islice(server.stdout, 3)))
            asked = {"prompt": "山", "max_tokens": 10**6, "temperature": 0}
            client = HTTPConnection(urlsplit(url).netloc)
            kind = {"Content-Type": "application/json"}
            client.request("POST", "/v1/completions", json.dumps(asked), kind)
            assert requests.get(f"{url}/models", timeout=60).ok, "answered after that request came"
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_a_port_in_use_is_refused_and_a_freed_one_is_taken(
    with_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(with_template) as client:
        port = client.base_url.port
        code = main(["serve", str(with_template), "--port", str(port)])
    assert code == ExitCode.MACHINE
    assert f"Port {port} of 127.0.0.1 cannot be used." in capsys.readouterr().err
    with served(with_template, port) as client:
        assert client.base_url.port == port
        assert [model.id for model in client.models.list()] == ["talker"]


def test_what_cannot_serve_is_named(
    with_template: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(with_template), "--host", "192.0.2.1"]) == ExitCode.CONFIG
    assert "is not an address of this machine" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(with_template)]) == ExitCode.MACHINE
    told = capsys.readouterr().err
    assert "missing: uvicorn" in told and "wikillm[serve]" in told
