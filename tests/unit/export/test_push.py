"""Pushes to both hubs: their real clients against a loopback server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from harness.hub_server import HubServer, serve_hub

from wikillm.checkpoints.manifest import seal_files
from wikillm.cli.main import main
from wikillm.core.errors import CheckpointError, ConfigError, ExitCode, MachineError, WikiLLMError
from wikillm.core.files import write_json
from wikillm.export.push import parse_repository, push_folder
from wikillm.export.target_folder import MARK

TOKEN = "hf_" + "x" * 30
pytestmark = pytest.mark.filterwarnings("ignore:Environment variable MODELSCOPE_DOMAIN")
HUBS = ("hf", "modelscope")
CREATE = {"hf": "/api/repos/create", "modelscope": "/api/v1/models"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serve_hub(TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.url)
        monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        # The hub's other upload protocol has a storage service of its own.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("modelscope_hub.config._default_config", None)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "README.md").write_text("# x\n")
    names = [path.name for path in folder.iterdir()]
    write_json(folder / MARK, {"run": "x", "files": seal_files(folder, names)})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("hub", HUBS)
def test_every_file_arrives_and_the_folder_stays(
    hub: str, server: HubServer, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "LICENSE").write_text("terms\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# edited\n")
    before = content(folder)
    repository = parse_repository(f"{hub}:org/small")
    url = push_folder(folder, repository, private=True)
    assert url.startswith(server.url) and url.endswith("org/small")
    assert server.files["org/small"] == before
    assert content(folder) == before
    asked = server.repositories["org/small"]
    if hub == "hf":
        assert asked["visibility"] == "private"
    else:
        assert (asked["Visibility"], asked["License"]) == (1, "mit")
    # The repository exists now: refused, and with update a new commit.
    with pytest.raises(ConfigError, match="HTTP 409"):
        push_folder(folder, repository)
    (folder / "README.md").write_text("# again\n")
    push_folder(folder, repository, update=True)
    assert server.files["org/small"]["README.md"] == b"# again\n"
    shown = capfd.readouterr()
    assert TOKEN not in shown.out + shown.err


@pytest.mark.parametrize("hub", HUBS)
@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, ConfigError, "HTTP 401"),
        (403, ConfigError, "HTTP 403"),
        (413, MachineError, "failed"),
    ],
)
def test_refusals_are_explained(
    hub: str,
    status: int,
    kind: type[WikiLLMError],
    text: str,
    server: HubServer,
    folder: Path,
) -> None:
    before = content(folder)
    server.refuse[CREATE[hub]] = status
    with pytest.raises(kind, match=text) as refused:
        push_folder(folder, parse_repository(f"{hub}:org/small"))
    assert "the export stays in" in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert content(folder) == before
    assert not server.files


@pytest.mark.parametrize("hub", HUBS)
def test_a_hub_that_does_not_respond_is_a_machine_error(
    hub: str, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib3.util.retry.Retry.sleep", lambda *_: None)
    with pytest.raises(MachineError, match="failed") as failed:
        push_folder(folder, parse_repository(f"{hub}:org/small"), private=True)
    # Without --private, the command to repeat would publish the model.
    assert f"--push {hub}:org/small --update --private" in (failed.value.fix or "")


@pytest.mark.parametrize("hub", HUBS)
def test_a_push_without_a_token_is_refused(
    hub: str, server: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="No token"):
        push_folder(folder, parse_repository(f"{hub}:org/small"))
    assert not server.log


def test_only_an_unchanged_export_is_pushed(server: HubServer, folder: Path) -> None:
    repository = parse_repository("hf:org/small")
    (folder / "notes.txt").write_text("private")
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config.json was changed\n  notes.txt was added"):
        push_folder(folder, repository)
    (folder / MARK).unlink()
    with pytest.raises(CheckpointError, match="not an exported folder"):
        push_folder(folder, repository)
    for text in ("hf:small", "s3:org/small", "hf:../x/y", "org/small"):
        with pytest.raises(ConfigError, match="must name a repository"):
            parse_repository(text)
    assert not server.log


def test_the_command_pushes_an_exported_folder(
    server: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push = ["export", str(folder), "--push", "modelscope:org/small"]
    assert main([*push, "--dry-run"]) == 0
    assert not server.log
    assert main([*push, "--private", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["url"].endswith("org/small")
    assert server.files["org/small"] == content(folder)
    assert main(push) == ExitCode.CONFIG
    assert "add a commit to it" in capsys.readouterr().err
    assert main(["export", str(folder), "--private"]) == ExitCode.CONFIG
    assert "no effect without --push" in capsys.readouterr().err
    assert main(["export", str(folder), "--licence", "My Licence"]) == ExitCode.CONFIG
