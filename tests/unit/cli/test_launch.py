"""`wikillm launch` on the command line: what is refused, what is shown, and `--go` through a real
child process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.stand_ins import StandIns

from wikillm.cli.main import main


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["mutli", "--print"], "multi"),
        (["multi"], "--print"),
        (["multi", "--gpus", "3", "--print"], "cannot be split over 3 ranks"),
        (["multi", "train.learing_rate=1", "--print"], "learning_rate"),
        (["multi", "--master-port", "70000", "--print"], "65535"),
        (["ssh", "--host=-oProxyCommand=x", "--print"], "not a host"),
        (["torchrun", "--nodes", "2", "--print"], "--master-addr"),
        (["torchrun", "--master-addr", "a;b", "--print"], "is not a host"),
        (["multi", "--image", "a", "--print"], "--image has no effect on the target multi"),
        (
            ["slurm", "--gpus", "1", "--master-port", "1", "--print"],
            "no effect on the target slurm",
        ),
        (["k8s", "--gpus", "1", "--image", "a", "--memory", "64", "--print"], "such as 24GiB"),
        (
            ["k8s", "--gpus", "1", "--image", "a", "--storage", "A b", "--print"],
            "PersistentVolumeClaim",
        ),
        (["k8s", "--gpus", "1", "--image", "a", "run.dir=/tmp/x", "--print"], "not on the storage"),
        (
            ["slurm", "--gpus", "1", "--partition", "a\n#SBATCH --uid=0", "--print"],
            "is not one word",
        ),
        (["hostfile", "--hostfile", "/nonexistent/hosts", "--print"], "/nonexistent/hosts"),
        (["multi", "data.tokenizer=x\x1b[2J", "--print"], "U+001B"),
        (
            ["k8s", "--gpus", "1", "--image", "a", "data.text_key=x\u2028spec: {}", "--print"],
            "U+2028",  # ends a comment of YAML
        ),
    ],
)
def test_wrong_targets_and_flags_are_refused_with_a_hint(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *words]) == 2
    assert hint in capsys.readouterr().err


def test_an_ipv6_machine_may_stand_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "ssh", "--host", "me@[2001:db8::1]", "--print"]) == 0
    shown = capsys.readouterr().out
    assert "-- me@2001:db8::1 'mkdir -p wikillm'" in shown and "me@[2001:db8::1]:wikillm/" in shown


def test_a_pod_asks_for_the_memory_that_offload_fills(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "k8s", "--image", "a", "--gpus", "8", "--config", "pretrain-7b"]
    words += ["data.path=x", "--print", "train.optimizer=adamw", "train.max_grad_norm=1"]
    shown = {}
    for recipe in ("zero2", "zero3_offload"):
        assert main([*words, "--deepspeed", recipe]) == 0
        job = yaml.safe_load(capsys.readouterr().out)
        requests = job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert requests["cpu"] == "64"
        shown[recipe] = int(requests["memory"].removesuffix("Gi"))
    assert shown["zero2"] == 256 and shown["zero3_offload"] >= 256 + 18 * 7_615_616_512 / 2**30
    assert main([*words, "--memory", "100GiB"]) == 0
    assert "memory: 100Gi" in capsys.readouterr().out


def test_a_secret_is_forwarded_by_name_and_not_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWANLAB_API_KEY", "canary-canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:canary@proxy")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub")
    assert main(["launch", "sky", "--gpu", "L4", "--gpus", "1", "--print"]) == 0
    shown = capsys.readouterr().out
    task = yaml.safe_load(shown)
    assert {"SWANLAB_API_KEY", "HTTPS_PROXY"} <= set(task["secrets"])
    assert "HF_ENDPOINT" in task["envs"]
    assert "canary" not in shown and "--secret SWANLAB_API_KEY" in shown
    assert main(["launch", "slurm", "--gpus", "1", "--deepspeed", "zero2", "--print"]) == 0
    shown = capsys.readouterr().out
    assert "canary" not in shown and ",SWANLAB_API_KEY" in shown


def test_flags_may_be_spelled_as_other_launchers_do(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch", "torchrun", "--gpus_per_node=2", "--master_port", "29501", "--print"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "--nproc_per_node 2" in shown and "--master_port 29501" in shown


def test_a_line_break_does_not_leave_the_comment(capsys: pytest.CaptureFixture[str]) -> None:
    word = "observe.sample_prompts=one\n#SBATCH --uid=0"
    assert main(["launch", "slurm", "--gpus", "1", word, "--print"]) == 0
    shown = capsys.readouterr().out
    options = shown[: shown.index("# Written by")]
    assert (
        "--uid" not in options
        and "\\n#SBATCH --uid=0" in shown.split("# Written by")[1].splitlines()[0]
    )


@pytest.mark.parametrize("code", [0, 75])
def test_go_hands_over_words_and_exit_code(code: int, tmp_path: Path) -> None:
    """In a child process: `--go` becomes the launcher. The interpreter's own folder stands first
    on its PATH."""
    tools = StandIns(tmp_path / "bin", "srun")
    (tmp_path / "bin" / "deepspeed").unlink(missing_ok=True)
    python = tmp_path / "bin" / "python"
    python.symlink_to(sys.executable)
    recorder = StandIns(tmp_path / "bin", "deepspeed")
    words = ["launch", "multi", "--gpus", "2", "--go", "observe.sample_prompts=a 'b' $c"]
    program = "import sys; sys.executable = sys.argv.pop(1); from wikillm.cli.main import main; "
    program += "sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(python), *words],
        cwd=tmp_path,
        env=tools.environ(STAND_IN_CODE=str(code)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    call = recorder.calls()[0]
    argv = call["argv"]
    assert call["env"]["WIKILLM_MAX_RESTARTS"] == "3", "for the alert of a failed rank"
    assert argv[:3] == ["--quiet", "--num_gpus", "2"] and argv[-1] == words[-1]
    assert "--module wikillm train" in " ".join(argv)  # not in a checkout


def test_a_missing_tool_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "slurm", "--gpus", "1", "--go"]) == 3
    assert "sbatch is not on this machine" in capsys.readouterr().err
    assert not json.dumps([path.name for path in tmp_path.iterdir()]).count("sbatch"), (
        "it wrote a file before it refused"
    )
