"""`wikillm alerts` tries every channel of a run and says which one would not work."""

from __future__ import annotations

import pytest
from harness.alert_receivers import hook_server

from wikillm.cli.main import main


def test_each_channel_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hook_server() as hooks:
        monkeypatch.setenv("GOOD", f"{hooks.url}/hook/canary-good")
        monkeypatch.setenv("GONE", f"{hooks.url}/hook/canary-gone")
        hooks.answers["/hook/canary-gone"] = (404, "no such hook")
        assert main(["alerts", "alerts.webhook=GOOD", "run.name=mine"]) == 0
        assert capsys.readouterr().out == "webhook    sent\n"
        assert main(["alerts", "alerts.webhook=GOOD", "alerts.wecom=GONE"]) == 3
    said = capsys.readouterr()
    assert 'wecom      not sent: HTTP 404: "no such hook"' in said.out
    assert "did not arrive through wecom" in said.err and "canary" not in said.out + said.err
    tests = [body for _, body in hooks.heard if body.get("event") == "test"]
    assert len(tests) == 2 and len(hooks.heard) == 3 and tests[0]["run"] == "mine"


def test_a_run_without_a_channel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alerts"]) == 2
    assert "no channel for alerts" in capsys.readouterr().err
