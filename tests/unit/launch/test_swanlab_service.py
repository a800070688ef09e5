"""SwanLab Launch against a loopback server that follows its contract or fails in each way."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.swanlab_service import KEY, PREFIX, Service, swanlab_service

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError
from wikillm.launch.swanlab_account import DEFAULT_HOST, find_account

MANIFEST = (
    'apiVersion: swanlab/v1\nkind: Folder\nmetadata:\n  name: demo\nspec:\n  python: "3.11"\n'
)
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "no_proxy", "NO_PROXY", "NETRC")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    secrets, job = tmp_path / "service", tmp_path / "job"
    secrets.mkdir()
    job.mkdir()
    (job / "swanlab.yaml").write_text(MANIFEST)
    (job / "train.py").write_text("print('hello')\n")
    (job / "requirements.txt").write_text("")
    monkeypatch.chdir(job)
    monkeypatch.setenv("HOME", str(tmp_path))
    # A ~/.netrc for this host must not replace the key.
    (tmp_path / ".netrc").write_text("machine 127.0.0.1\nlogin someone\npassword else\n")
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with swanlab_service(secrets) as running:
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def swanlab(service, capsys):
    """Run `wikillm launch swanlab WORDS`; returns the exit code and what was printed."""

    def run(*words: str, timeout: str = "5") -> tuple[int, str]:
        code = main(["launch", "swanlab", *words, "--timeout", timeout])
        done = capsys.readouterr()
        text = done.out + done.err
        assert KEY not in text and "token1" not in text and "secret1" not in text
        return code, text

    return run


def test_a_folder_is_submitted_followed_and_its_output_fetched(service, swanlab, tmp_path):
    words = ("--submit", "--yes", "--follow", "--every", "0.05", "--to", str(tmp_path / "out"))
    code, text = swanlab(*words)
    assert code == 0, text
    assert "task       task00" in text
    assert all(state in text for state in ("QUEUING", "RUNNING", "COMPLETED"))
    task = service.tasks["task00"]
    assert (task["index"], task["python"], task["name"]) == ("train.py", "python3.11", "demo")
    assert task["src"].startswith(f"{PREFIX}/tasks/") and task["src"].endswith(".zip")
    packed = zipfile.ZipFile(io.BytesIO(service.objects[task["src"]]))
    assert packed.read("train.py") == b"print('hello')\n"
    assert (tmp_path / "out" / "out.zip").read_bytes() == b"the output" * 1000
    code, text = swanlab("task", "fetch", "task00", "--to", str(tmp_path / "out"))
    assert code == 2 and "overwrite" in text


def test_nothing_is_sent_without_a_confirmation(service, swanlab):
    for words in (["--submit"], ["data", "upload", "train.py"]):
        code, text = swanlab(*words)
        assert code == 2 and "--yes" in text
    assert service.asked == []


def test_the_answer_no_sends_nothing(service, swanlab, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    code, text = swanlab("--submit")
    assert code == 0 and "nothing was sent" in text and "key" in text
    assert service.asked == []


def test_tasks_are_listed_shown_and_stopped(service, swanlab):
    service.states = ["RUNNING"]
    assert swanlab("--submit", "--yes")[0] == 0
    assert "task00  RUNNING" in swanlab("task", "list")[1]
    assert "status     RUNNING" in swanlab("task", "status", "task00")[1]
    assert swanlab("task", "stop", "task00")[0] == 0
    assert "status     STOPPED" in swanlab("task", "status", "task00")[1]
    assert "has no output" in swanlab("task", "fetch", "task00")[1]
    code, text = swanlab("task", "follow", "task00", "--every", "0.05")
    assert code == 3 and "STOPPED" in text
    for verb in ("status", "stop"):
        code, text = swanlab("task", verb, "nobody")
        assert code == 2 and "no such task" in text
    code, text = swanlab("task", "status", "../user")
    assert code == 2 and "not an id" in text
    for words in (["task"], ["task", "status"], ["task", "list", "x"], ["data", "what"]):
        assert swanlab(*words)[0] == 2


def test_an_id_that_is_not_in_the_answer_is_found_among_the_tasks(service, swanlab):
    service.tells_id = False
    code, text = swanlab("--submit", "--yes")
    assert code == 0 and "task       task00" in text


def test_a_crashed_task_is_an_error_with_its_message(service, swanlab):
    service.states = ["RUNNING", "CRASHED"]
    code, text = swanlab("--submit", "--yes", "--follow", "--every", "0.05")
    assert code == 3 and "Traceback: boom" in text


def test_large_and_nested_files_are_uploaded_as_a_data_set(service, swanlab):
    large = os.urandom(9 * 2**20)  # two parts
    Path("texts/a").mkdir(parents=True)
    Path("texts/a/中文 &.jsonl").write_bytes(large)
    Path("texts/b.txt").write_text("b")
    named = ("--yes", "--name", "wiki", "--desc", "some text")
    code, text = swanlab("data", "upload", "texts", *named)
    assert code == 0 and "data02" in text, text
    assert service.objects[f"{PREFIX}/datasets/data02/wiki/a/中文 &.jsonl"] == large
    assert service.objects[f"{PREFIX}/datasets/data02/wiki/b.txt"] == b"b"
    assert service.datasets["data02"] == {"name": "wiki", "desc": "some text", "status": "SUCCESS"}
    assert "data02  SUCCESS  wiki  some text" in swanlab("data", "list")[1]


def test_credentials_that_expire_are_renewed(service, swanlab):
    service.lives = 1.0
    Path("big").write_bytes(bytes(9 * 2**20))
    assert swanlab("data", "upload", "big", "--yes")[0] == 0
    assert service.asked.count("GET /user/codes/sts") == 4  # begin, two parts, complete


def test_a_key_that_the_service_refuses_is_an_error(service, swanlab):
    service.key = "another"
    code, text = swanlab("task", "list")
    assert code == 2 and "does not accept the key" in text
    assert service.asked == ["POST /login/api_key"]


def test_an_unknown_data_set_or_machine_is_named(service, swanlab):
    for more, what in (
        ("  volumes: [{name: wiki, id: none}]\n", "no such data set"),
        ("", "no such machine"),
    ):
        text = MANIFEST if more else MANIFEST.replace("name: demo", "name: demo\n  combo: TPU-1")
        Path("swanlab.yaml").write_text(text + more)
        code, said = swanlab("--submit", "--yes")
        assert code == 2 and what in said
    assert service.tasks == {}


def test_a_refused_large_upload_ends_and_leaves_no_parts(service, swanlab):
    """The old client never returned here."""
    Path("random.bin").write_bytes(os.urandom(2 * 2**20))
    service.faults = {"PUT part": [413]}
    code, text = swanlab("--submit", "--yes")
    assert code == 3 and "refused" in text and "413" in text
    assert service.parts == {} and service.tasks == {}
    assert not any(name == "POST /task" for name in service.asked)


def test_a_failed_data_upload_marks_the_data_set_as_failed(service, swanlab):
    service.faults = {"PUT object": [400]}
    code, _ = swanlab("data", "upload", "train.py", "--yes")
    assert code == 3 and service.datasets["data02"]["status"] == "FAILURE"


LOGIN = "POST /login/api_key"
SHAPES = (b"<html>welcome</html>", b"[]", b'{"ok": true}', b'{"sid": 5}', "redirect", b"")


@pytest.mark.parametrize(
    ("faults", "words", "timeout", "error"),
    [
        ({"PUT object": [403]}, "--submit --yes", "5", ""),  # fresh credentials need a moment
        # What can be repeated without harm is.
        ({"GET /task": [500], "PUT object": [502]}, "--submit --yes", "5", ""),
        ({"GET /task": [503], "PUT object": [502]}, "--submit --yes", "5", ""),
        ({"GET /task": ["cut"], "PUT object": [502]}, "--submit --yes", "5", ""),
        ({"POST /task": ["cut"]}, "--submit --yes", "5", "data set may exist"),
        ({LOGIN: ["stall"] * 3}, "task list", "0.5", "does not answer"),
        ({LOGIN: ["trickle"] * 3}, "task list", "0.5", "does not answer"),
        ({"PUT object": ["stall"] * 2}, "--submit --yes", "0.5", "object store does not answer"),
        *(({LOGIN: [body]}, "task list", "5", "an unknown form") for body in SHAPES),
    ],
)
def test_each_fault_of_the_service_is_an_error_within_the_time_limit(
    faults, words, timeout, error, service, swanlab
):
    service.faults = faults
    code, text = swanlab(*words.split(), timeout=timeout)
    assert code == (3 if error else 0) and error in text
    if LOGIN in faults:  # the contract may be out of date: its date, and what to do instead
        assert "2024-12-23" in text and "wikillm launch ssh" in text
    if "may exist" in error:
        assert service.asked.count("POST /task") == 1
    if not error:
        assert len(service.tasks) == 1


def test_a_certificate_that_nobody_signed_is_refused(service, swanlab, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    code, text = swanlab("task", "list")
    assert code == 3 and "certificate" in text.lower()
    assert service.asked == []


def test_flags_that_do_not_fit_the_command_are_refused(service, swanlab):
    submit = ("--submit --to x", "--submit --every 0", "--submit train.max_steps=1")
    for words in ("--follow", "--go", *submit, "task list --every nan"):
        assert main(["launch", "swanlab", *words.split()]) == 2, words
    assert main(["launch", "single", "--submit"]) == 2
    assert service.asked == []


def test_the_key_comes_from_the_environment_or_the_netrc_of_its_host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no SwanLab key"):
        find_account({"SWANLAB_ROOT": str(tmp_path)})
    entry = f"machine https://api.swanlab.cn\nlogin https://swanlab.cn\npassword {KEY}\n"
    (tmp_path / ".netrc").write_text(entry)
    root = {"SWANLAB_ROOT": str(tmp_path)}
    found = find_account(root)
    assert (found.host, found.key) == (DEFAULT_HOST, KEY)
    assert KEY not in repr(found)
    with pytest.raises(ConfigError, match="no SwanLab key"):  # it is the key of another address
        find_account({**root, "SWANLAB_API_HOST": "https://other.example/api"})
    with pytest.raises(ConfigError, match="unencrypted"):
        find_account({"SWANLAB_API_HOST": "http://swanlab.example", "SWANLAB_API_KEY": KEY})
    with pytest.raises(ConfigError) as refused:
        find_account({"SWANLAB_API_KEY": f"{KEY}\nx: y"})
    assert KEY not in str(refused.value)
