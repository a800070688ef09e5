"""The SwanLab sink with the real client: offline into a folder, online to a server on loopback.

Each case is a separate process: SwanLab keeps global state, and the exit is a part of the test.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wikillm.config.schema import SwanLabSection
from wikillm.observe.swanlab import SwanLabSink, new_run_id, unreachable

ROOT = Path(__file__).resolve().parents[3]

PRELUDE = """
import json, os, signal, sys, threading, time
from pathlib import Path
from wikillm.config.schema import SwanLabSection
from wikillm.observe.sinks import Sample
from wikillm.observe.swanlab import SwanLabSink

def sink(mode, project="wikillm", **options):
    folder = os.environ["LOG"]
    settings = SwanLabSection(
        mode=mode, project=project, log_dir=folder, finish_timeout_seconds=2.0
    )
    return SwanLabSink(settings, run_name="e", run_dir=Path(folder), **options)

def report(**facts):
    print("FACTS " + json.dumps(facts, default=str), flush=True)

def wait_for(name):
    while not Path(os.environ["LOG"], name).exists():
        time.sleep(0.02)

"""


class Child:
    """A process that runs PRELUDE and `code`; `facts` are the last it printed."""

    def __init__(self, code: str, environ: dict[str, str], log: Path) -> None:
        log.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            env={**environ, "LOG": str(log), "PYTHONPATH": str(ROOT)},
            cwd=log,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def signal(self, name: str) -> None:
        """Let a `wait_for(name)` in the child return."""
        (self.log / name).touch()

    def line(self) -> dict[str, Any]:
        """The next facts that the child prints, while it runs."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("FACTS "):
                return json.loads(line.removeprefix("FACTS "))
        raise AssertionError("the child ended: " + self.end().stderr)

    def end(self) -> Child:
        """Wait for the exit: longer than any limit of the sink, shorter than SwanLab's waiting."""
        try:
            self.stdout, self.stderr = self._process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            pytest.fail("the process did not exit: " + self._process.communicate()[1][-2000:])
        self.code = self._process.returncode
        printed = [line for line in self.stdout.splitlines() if line.startswith("FACTS ")]
        self.facts = json.loads(printed[-1].removeprefix("FACTS ")) if printed else {}
        return self


def online(environ: dict[str, str], url: str) -> dict[str, str]:
    return {
        **environ,
        "SWANLAB_API_HOST": url,
        "SWANLAB_WEB_HOST": url,
        "SWANLAB_API_KEY": "canary-swanlab-key-01",
    }


def test_offline_writes_files_and_a_resumed_run_keeps_its_id(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    code = """
before = sys.excepthook, signal.getsignal(signal.SIGINT)
s = sink("offline", run_id=os.environ.get("RUN_ID"))
s.start({"train": {"learning_rate": 5e-4}, "hub_token": "canary-in-config"})
s.log(1, {"loss": 9.5, "step": 1})
s.log(1, {"eval_loss": 9.0}, "eval")
s.text(1, [Sample("The history of", " the world"), Sample("", "")])
s.finish(0)
report(id=s.run_id, folder=s.folder, mode=s.mode, sync=s.sync_command,
     untouched=before == (sys.excepthook, signal.getsignal(signal.SIGINT)))
"""
    first = Child(code, environ, tmp_path / "swanlog").end()
    assert first.code == 0 and first.facts["mode"] == "offline" and first.facts["untouched"], (
        first.stderr
    )
    folder = Path(first.facts["folder"])
    assert len(first.facts["id"]) == 21 and folder.parent == tmp_path / "swanlog"
    assert b"train/loss" in next(folder.glob("*.swanlab")).read_bytes()
    assert any(
        file.read_text() == "The history of the world"
        for file in (folder / "media" / "text").iterdir()
    )
    assert first.facts["sync"] == f"swanlab sync --id {first.facts['id']} {folder}"
    again = Child(code, {**environ, "RUN_ID": first.facts["id"]}, tmp_path / "swanlog").end()
    assert again.facts["id"] == first.facts["id"] and again.facts["folder"] != first.facts["folder"]
    everything = b"".join(
        file.read_bytes() for file in (tmp_path / "swanlog").rglob("*") if file.is_file()
    )
    assert b"canary" not in everything and b"learning_rate" in everything
    assert (
        str(Path.home()).encode() not in everything
        and f'"{socket.gethostname()}"'.encode() not in everything
    )


def test_online_metrics_arrive_and_secrets_do_not(
    tmp_path: Path, environ: dict[str, str], server: Any
) -> None:
    code = """
s = sink("online")
s.start({"model": "120m", "remote": "https://me:canary-user@git.example/x.git",
         "hub": {"password": "canary-pw"},
         "note": "used " + os.environ["HF_TOKEN"]})
for step in (1, 2):
    s.log(step, {"loss": 1 / step, "step": step, "grad_norm": None})
s.log(2, {"eval_loss": 2.5, "bits_per_byte": 1.25}, "eval")
s.text(2, [Sample("a", "b")])
print("canary-on-stdout", flush=True)
s.finish(0)
report(id=s.run_id, mode=s.mode)
"""
    secret = {
        **online(environ, server.url),
        "HF_TOKEN": "canary-environment",
        "SWANLAB_PROJECT": "from-environment",
    }
    child = Child(code, secret, tmp_path / "log").end()
    assert child.code == 0 and child.facts["mode"] == "online", child.stderr
    expected = {
        ("train/loss", 1): 1.0,
        ("train/loss", 2): 0.5,
        ("eval/loss", 2): 2.5,
        ("eval/bits_per_byte", 2): 1.25,
    }
    assert server.metrics() == expected
    assert server.experiments == {child.facts["id"]}
    assert all(
        "/from-environment" in path
        for method, path, _ in server.calls
        if path.startswith("/api/project/")
    )
    assert ("PUT", "/objects/0", "ab") in server.calls
    assert any(path.endswith("/state") and "FINISHED" in body for _, path, body in server.calls)
    assert any('"value": "120m"' in body for _, _, body in server.calls)
    assert "canary" not in "".join(body for _, _, body in server.calls)
    assert f'"{socket.gethostname()}"' not in "".join(body for _, _, body in server.calls)


def test_a_resumed_run_continues_online(
    tmp_path: Path, environ: dict[str, str], server: Any
) -> None:
    code = """
s = sink("online", run_id="abc")
s.start({})
s.log(int(os.environ["STEP"]), {"loss": 1.0})
s.finish(75)
"""
    for step in ("1", "2"):
        Child(code, {**online(environ, server.url), "STEP": step}, tmp_path / "log").end()
    assert server.experiments == {"abc"}
    assert server.metrics() == {("train/loss", 1): 1.0, ("train/loss", 2): 1.0}
    assert sum("ABORTED" in body for _, path, body in server.calls if path.endswith("/state")) == 2


@pytest.mark.parametrize("end", ["s.finish(0)", "raise ValueError('boom')", "pass"])
def test_a_server_that_dies_never_blocks_the_run(
    tmp_path: Path, environ: dict[str, str], server: Any, end: str
) -> None:
    code = f"""
s = sink("online")
s.start({{}})
report(started=s.mode)
wait_for("go")
s.log(1, {{"loss": 1.0}})
{end}
"""
    child = Child(code, online(environ, server.url), tmp_path / "log")
    assert child.line() == {"started": "online"}
    server.die()
    child.signal("go")
    child.end()
    assert child.code == (1 if "raise" in end else 0)
    assert ("ValueError: boom" in child.stderr) == ("raise" in end)
    assert "has not finished after 2 s" in child.stderr and "swanlab sync --id" in child.stderr


@pytest.mark.parametrize("request_path", ["/house/metrics", "/objects/", "/state"])
def test_a_server_that_stalls_never_blocks_the_run(
    tmp_path: Path, environ: dict[str, str], server: Any, request_path: str
) -> None:
    code = """
s = sink("online")
s.start({})
s.log(1, {"loss": 1.0})
s.text(1, [Sample("a", "b")])
s.finish(0)
report(back=True)
"""
    server.stall_on = request_path
    child = Child(code, online(environ, server.url), tmp_path / "log").end()
    assert child.code == 0 and child.facts == {"back": True}
    assert "has not finished after 2 s" in child.stderr
    assert any(request_path in path for _, path, _ in server.calls)


def test_a_login_that_stalls_never_blocks_the_start(
    tmp_path: Path, environ: dict[str, str], server: Any
) -> None:
    code = """
from wikillm.cli.main import program
s = sink("online", start_timeout=0.5)
s.start({})
s.log(1, {"loss": 1.0})
report(folder=s.folder)
program(["--version"])
"""
    server.stall_on = "/login"
    child = Child(code, online(environ, server.url), tmp_path / "log").end()
    assert child.code == 0 and child.facts == {"folder": None}
    assert "has not started after 0.5 s" in child.stderr


def test_an_uncaught_exception_is_recorded_as_crashed(
    tmp_path: Path, environ: dict[str, str], server: Any
) -> None:
    code = "s = sink('online')\ns.start({})\nraise ValueError('see https://me:canary@host/')"
    child = Child(code, online(environ, server.url), tmp_path / "log").end()
    assert child.code == 1 and "Traceback" in child.stderr
    states = [body for _, path, body in server.calls if path.endswith("/state")]
    assert len(states) == 1 and "CRASHED" in states[0]
    assert "canary" not in "".join(body for _, _, body in server.calls)


def test_online_without_key_or_server_falls_back_to_offline(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    code = """
s = sink("online")
s.start({})
s.log(1, {"loss": 1.0})
s.finish(0)
report(mode=s.mode, files=len(list(s.folder.glob("*.swanlab"))))
"""
    keyless = Child(code, environ, tmp_path / "keyless").end()
    assert keyless.facts == {"mode": "offline", "files": 1}, keyless.stderr
    assert "SWANLAB_API_KEY" in keyless.stderr
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    serverless = Child(code, online(environ, url), tmp_path / "serverless").end()
    assert serverless.facts == {"mode": "offline", "files": 1}, serverless.stderr
    assert "does not answer" in serverless.stderr and url in serverless.stderr


def test_an_error_inside_never_reaches_training(tmp_path: Path, environ: dict[str, str]) -> None:
    code = """
s = sink("offline", project="not a project name!")
s.start({})
for step in range(3):
    s.log(step, {"loss": 1.0})
s.finish(0)
report(mode=s.mode)
"""
    child = Child(code, {**environ, "SWANLAB_CORE": "x"}, tmp_path / "log").end()
    assert child.code == 0 and child.facts == {"mode": "disabled"}
    assert child.stderr.count("SwanLab is off for the rest of this run") == 1
    assert "SWANLAB_CORE would crash SwanLab" in child.stderr


def test_disabled_does_nothing(tmp_path: Path) -> None:
    sink = SwanLabSink(SwanLabSection(mode="disabled"), run_name="e", run_dir=tmp_path)
    sink.start({})
    sink.log(1, {"loss": 1.0})
    sink.finish(0)
    assert not list(tmp_path.iterdir()) and sink.folder is None and sink.sync_command is None


def test_new_run_ids_differ() -> None:
    assert len({new_run_id() for _ in range(100)}) == 100


def test_the_check_goes_where_the_proxy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert unreachable("https://api.example.invalid", 2.0) is None
        monkeypatch.setenv("no_proxy", "api.example.invalid")
        assert unreachable("https://api.example.invalid", 2.0)


def test_a_local_run_is_told_what_shows_it(tmp_path: Path, environ: dict[str, str]) -> None:
    child = Child('s = sink("local"); s.start({}); s.finish(0)', environ, tmp_path / "log").end()
    assert child.code == 0
    assert child.stderr.count("local board is no longer maintained") == 1, child.stderr
    assert f"{tmp_path / 'log' / 'report.html'} shows the run without it" in child.stderr


@pytest.mark.deep
def test_hardware_is_read_only_where_it_was_asked_for(
    tmp_path: Path, environ: dict[str, str], server: Any
) -> None:
    """SwanLab's shortest interval is 5 s."""
    code = """
settings = SwanLabSection(mode="online", log_dir=os.environ["LOG"],
                          hardware_seconds=json.loads(os.environ["SECONDS"]))
s = SwanLabSink(settings, run_name="e", run_dir=Path(os.environ["LOG"]))
s.start({})
time.sleep(7)
s.finish(0)
"""
    for seconds in ("null", "5"):
        before = len(server.heard)
        variables = {**online(environ, server.url), "SECONDS": seconds}
        assert Child(code, variables, tmp_path / seconds).end().code == 0
        said = "".join(body for _, _, body in server.heard[before:])
        assert ("cpu.pct" in said) == (seconds == "5"), said[:2000]
