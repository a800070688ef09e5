"""Renderings are run, not read: launchers and cluster tools are stand-ins that record what reached them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from harness.stand_ins import StandIns

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch
from wikillm.launch.targets import TARGETS, render

HOSTILE = (
    "run.name=a b",
    "data.path=it's here.jsonl",
    'x="$(touch pwned)"; `touch pwned` & | > pwned',
    "two\nlines",
    "*",
    "$HOME",
    "-rf",
    "中文 维基",
)

_JOB = {"apiVersion": "batch/v1", "kind": "Job"}


def launch(tmp_path: Path, **changes: object) -> Launch:
    base = {"name": "demo", "words": HOSTILE, "command": "wikillm launch", "workdir": str(tmp_path)}
    return Launch(**{**base, **changes})  # type: ignore[arg-type]


def hosts(tmp_path: Path, text: str = "node1 slots=2\nnode2 slots=1\n") -> Path:
    (tmp_path / "hostfile").write_text(text)
    return tmp_path / "hostfile"


@pytest.mark.parametrize("target", ["single", "multi", "torchrun"])
def test_every_word_reaches_the_local_launcher_unchanged(target: str, tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "deepspeed", "torchrun")
    made = render(target, launch(tmp_path, gpus=2))
    done = tools.bash(made.text, "more words", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = tools.calls()
    assert tuple(call["argv"]) == (*made.steps[0].argv[1:], "more words")
    assert tuple(call["argv"][-len(HOSTILE) - 1 : -1]) == HOSTILE
    assert not list(tmp_path.rglob("pwned"))


def test_torchrun_static_and_with_restarts(tmp_path: Path) -> None:
    static = render("torchrun", launch(tmp_path, gpus=2)).steps[0].argv
    assert "--rdzv_backend" not in static and "--master_port" in static
    elastic = render("torchrun", launch(tmp_path, gpus=2, max_restarts=3)).steps[0].argv
    assert elastic[elastic.index("--max_restarts") + 1] == "3" and "c10d" in elastic


def test_torchrun_on_several_nodes_takes_the_rank_from_the_environment(tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "torchrun")
    made = render("torchrun", launch(tmp_path, gpus=8, nodes=2, master_addr="node1"))
    assert made.steps == ()
    assert tools.bash(made.text, cwd=tmp_path, NODE_RANK="1").returncode == 0
    argv = tools.calls()[0]["argv"]
    assert argv[argv.index("--node_rank") + 1] == "1" and tuple(argv[-len(HOSTILE) :]) == HOSTILE
    without = tools.bash(made.text, cwd=tmp_path)
    assert without.returncode != 0 and "NODE_RANK" in without.stderr


def test_hostfile_starts_one_launcher_per_node_with_the_forwarded_variables(tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "ssh", "deepspeed")
    (tmp_path / "train.py").touch()
    key = "canary 'k' $x"
    made = render("hostfile", launch(tmp_path, hostfile=hosts(tmp_path), variables={"SWANLAB_API_KEY": key}))
    assert key not in made.text and "SWANLAB_API_KEY" in made.text
    done = tools.bash(made.text, cwd=tmp_path, SWANLAB_API_KEY=key, HF_TOKEN="stays here")
    assert done.returncode == 0, done.stderr
    calls = sorted(tools.calls(), key=lambda call: call["env"]["HOST"])
    assert [call["env"]["HOST"] for call in calls] == ["node1", "node2"]
    for rank, call in enumerate(calls):
        argv = call["argv"]
        assert argv[argv.index("--node_rank") + 1] == str(rank) and "--no_ssh" in argv
        assert argv[argv.index("--master_addr") + 1] == "node1"
        assert tuple(argv[-len(HOSTILE) :]) == HOSTILE
        assert call["cwd"] == str(tmp_path)
        assert call["env"]["SWANLAB_API_KEY"] == key and "HF_TOKEN" not in call["env"]
    assert (tmp_path / ".deepspeed_env").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.rglob("pwned"))


def test_a_node_that_fails_fails_the_launch(tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "ssh", "deepspeed")
    (tmp_path / "train.py").touch()
    made = render("hostfile", launch(tmp_path, hostfile=hosts(tmp_path)))
    done = tools.bash(made.text, cwd=tmp_path, STAND_IN_CODE="5", STAND_IN_HOST="node2")
    assert done.returncode == 5, done.stderr


def test_ssh_copies_forwards_and_starts_in_the_background(tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "ssh", "rsync", "deepspeed")
    over_there = tmp_path / "over there"
    made = render("ssh", launch(tmp_path, host="me@gpu1", workdir=str(over_there), variables={"NCCL_DEBUG": "a b"}))
    done = tools.bash(made.text, cwd=tmp_path, NCCL_DEBUG="a b")
    assert done.returncode == 0, done.stderr
    assert "follow it: ssh" in done.stdout
    pid = over_there / "demo.pid"
    for _ in range(200):
        calls = {call["tool"]: call for call in tools.calls()}
        if "deepspeed" in calls and pid.exists():
            break
        time.sleep(0.05)
    assert calls["rsync"]["argv"][-1] == f"me@gpu1:{over_there}/"
    assert tuple(calls["deepspeed"]["argv"][-len(HOSTILE) :]) == HOSTILE
    assert calls["deepspeed"]["env"]["NCCL_DEBUG"] == "a b"
    assert int(pid.read_text()) > 1


@pytest.mark.parametrize(("code", "asked", "requeued"), [(0, 0, False), (75, 0, True), (75, 1, False), (5, 0, False)])
def test_slurm_starts_every_rank_and_queues_a_stopped_run_again(
    code: int, asked: int, requeued: bool, tmp_path: Path
) -> None:
    tools = StandIns(tmp_path / "bin", "srun", "scontrol", "python")
    made = render("slurm", launch(tmp_path, gpus=2))
    assert re.search(r"^#SBATCH --signal=USR1@120$", made.text, re.MULTILINE)
    # The stand-in of scontrol must not fail with the ranks' code.
    (tmp_path / "bin" / "python").write_text(
        (tmp_path / "bin" / "python").read_text().replace('get("STAND_IN_CODE"', 'get("RANK_CODE"')
    )
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(scontrol.read_text().replace("sys.exit(", "print('node1\\nnode2')\nsys.exit("))
    if asked:  # what a rank leaves that `wikillm stop` has reached
        path = tmp_path / "bin" / "python"
        path.write_text(
            path.read_text().replace("line = json", "open(os.environ['WIKILLM_STOP_MARK'], 'w')\nline = json")
        )
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "RANK_CODE": str(code)}
    done = tools.bash(made.text, cwd=tmp_path, **slurm)
    assert done.returncode == code, done.stderr
    ranks = sorted((c for c in tools.calls() if c["tool"] == "python"), key=lambda call: call["env"]["RANK"])
    assert [(c["env"]["RANK"], c["env"]["WORLD_SIZE"], c["env"]["LOCAL_WORLD_SIZE"]) for c in ranks] == [
        ("0", "2", "2"),
        ("1", "2", "2"),
    ]
    assert all(tuple(c["argv"]) == ("train.py", "--resume", "auto", *HOSTILE) for c in ranks)
    assert (ranks[1]["env"]["MASTER_ADDR"], ranks[1]["env"]["WIKILLM_NODES"]) == ("node1", "node1,node2")
    assert ranks[0]["env"]["MASTER_PORT"] == "20007" and not (tmp_path / ".stopped-7").exists()
    asked = [c["argv"] for c in tools.calls() if c["tool"] == "scontrol"]
    assert (["requeue", "7"] in asked) == requeued


def test_kubernetes_passes_words_without_a_shell_and_values_by_secret(tmp_path: Path) -> None:
    made = render("k8s", launch(tmp_path, gpus=8, nodes=2, image="a/b:c", variables={"SWANLAB_API_KEY": "canary"}))
    assert "canary" not in made.text
    manifest = yaml.safe_load(made.text)
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert (manifest["kind"], replicas["Master"]["replicas"], replicas["Worker"]["replicas"]) == ("PyTorchJob", 1, 1)
    container = replicas["Worker"]["template"]["spec"]["containers"][0]
    assert container["command"][-len(HOSTILE) :] == [word.replace("$(", "$$(") for word in HOSTILE]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert yaml.safe_load(render("k8s", launch(tmp_path, gpus=1, image="a")).text)["kind"] == "Job"


@pytest.mark.parametrize("nodes", [1, 3])
def test_kubernetes_manifests_keep_the_schema_of_kubernetes(tmp_path: Path, nodes: int) -> None:
    """A Job as a whole; of a PyTorchJob, whose schema is Kubeflow's, the pods."""
    made = render("k8s", launch(tmp_path, gpus=8, nodes=nodes, image="a/b:c", variables={"HF_ENDPOINT": "x"}))
    manifest = yaml.safe_load(made.text)
    if nodes > 1:
        replicas = manifest["spec"]["pytorchReplicaSpecs"].values()
        jobs = [{**_JOB, "metadata": manifest["metadata"], "spec": {"template": one["template"]}} for one in replicas]
    else:
        jobs = [manifest]
    for job in jobs:
        kubernetes_validate.validate(job, desired_version="1.30", strict=True)
        job["spec"]["template"]["spec"]["containers"][0]["comand"] = []
        with pytest.raises(kubernetes_validate.ValidationError, match="comand"):
            kubernetes_validate.validate(job, desired_version="1.30", strict=True)


def test_sky_reads_its_task(tmp_path: Path) -> None:
    """SkyPilot's own parser, where it is installed (pip install skypilot)."""
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: pip install skypilot")
    made = render("sky", launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100"))
    (tmp_path / "task.yaml").write_text(made.text, encoding="utf-8")
    task = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    assert (task.num_nodes, task.workdir, next(iter(task.resources)).accelerators) == (2, ".", {"H100": 8})


def test_sky_runs_the_words_through_bash_unchanged(tmp_path: Path) -> None:
    tools = StandIns(tmp_path / "bin", "torchrun")
    made = render("sky", launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100", variables={"HF_ENDPOINT": "x"}))
    task = yaml.safe_load(made.text)
    assert task["resources"] == {"accelerators": "H100:8"} and task["num_nodes"] == 2
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    sky = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    assert tools.bash(task["run"], cwd=tmp_path, **sky).returncode == 0
    argv = tools.calls()[0]["argv"]
    assert argv[argv.index("--master_addr") + 1] == "10.0.0.1" and tuple(argv[-len(HOSTILE) :]) == HOSTILE
    assert made.steps[0].argv[:4] == ("sky", "launch", "--env", "HF_ENDPOINT")


@pytest.mark.parametrize(
    ("target", "flag"),
    [
        ("hostfile", "--hostfile"),
        ("ssh", "--host"),
        ("slurm", "--gpus-per-node"),
        ("k8s", "--image"),
        ("sky", "--gpu "),
    ],
)
def test_what_is_missing_is_named(target: str, flag: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        render(target, launch(tmp_path))
    assert flag in (refused.value.fix or "")


def test_an_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        render("slrum", launch(tmp_path))
    assert refused.value.fix == "slurm"
    assert len(TARGETS) == 8
