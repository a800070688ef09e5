"""Renderings are run: launchers and cluster tools are stand-ins that record what reached them."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from harness.stand_ins import StandIns

from wikillm.core.errors import ConfigError
from wikillm.launch.description import Launch
from wikillm.launch.slurm import PrepareArray, prepare_array
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


def launch(tmp_path: Path, **changes: object) -> Launch:
    base = {"name": "demo", "words": HOSTILE, "command": "wikillm launch", "workdir": str(tmp_path)}
    return Launch(**{**base, **changes})  # type: ignore[arg-type]


def hosts(tmp_path: Path, text: str = "node1 slots=2\nnode2 slots=1\n") -> Path:
    (tmp_path / "hostfile").write_text(text)
    return tmp_path / "hostfile"


@pytest.mark.parametrize("target", ["single", "multi", "torchrun"])
def test_every_word_reaches_the_local_launcher_unchanged(target, tmp_path):
    tools = StandIns(tmp_path / "bin", "deepspeed", "torchrun")
    made = render(target, launch(tmp_path, gpus=2))
    done = tools.bash(made.text, "more words", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (call,) = tools.calls()
    assert tuple(call["argv"]) == (*made.steps[0].argv[1:], "more words")
    assert tuple(call["argv"][-len(HOSTILE) - 1 : -1]) == HOSTILE
    assert not list(tmp_path.rglob("pwned"))


def test_a_prepare_array_gets_every_word_and_its_comment_runs_nothing(tmp_path, monkeypatch):
    """The comment has the command as typed: a line break in a file's name does not end it."""
    monkeypatch.setenv("SWANLAB_API_KEY", "canary-canary")
    words = (*HOSTILE, "data.path=x\ntouch pwned\n", "data.text_key=canary-canary")
    tools = StandIns(tmp_path / "bin", "wikillm")
    text = prepare_array(PrepareArray(words, 2, 1, 1.0), ("wikillm", "prepare", *words))
    done = tools.bash(text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tuple(tools.calls()[0]["argv"]) == ("prepare", *words)
    comment = next(line for line in text.splitlines() if line.startswith("# Written by"))
    assert "touch pwned" in comment and "canary" not in comment
    assert not list(tmp_path.rglob("pwned"))


def test_torchrun_has_a_static_rendezvous_and_with_restarts_an_elastic_one(tmp_path):
    """An IPv6 address has brackets where a port follows."""
    given = launch(tmp_path, gpus=2, nodes=2, master_addr="2001:db8::1")
    static = render("torchrun", given).text
    assert "--rdzv_backend" not in static and "--master_addr 2001:db8::1" in static
    elastic = render("torchrun", replace(given, max_restarts=3)).text
    assert "--max_restarts 3" in elastic and "c10d" in elastic
    assert "[2001:db8::1]:29500" in elastic


def test_torchrun_on_several_nodes_takes_the_rank_from_the_environment(tmp_path):
    tools = StandIns(tmp_path / "bin", "torchrun")
    made = render("torchrun", launch(tmp_path, gpus=8, nodes=2, master_addr="node1"))
    assert made.steps == ()
    assert tools.bash(made.text, cwd=tmp_path, NODE_RANK="1").returncode == 0
    argv = tools.calls()[0]["argv"]
    assert argv[argv.index("--node_rank") + 1] == "1" and tuple(argv[-len(HOSTILE) :]) == HOSTILE
    without = tools.bash(made.text, cwd=tmp_path)
    assert without.returncode != 0 and "NODE_RANK" in without.stderr


def test_hostfile_starts_one_launcher_per_node_with_the_forwarded_variables(tmp_path):
    tools = StandIns(tmp_path / "bin", "ssh", "deepspeed")
    (tmp_path / "train.py").touch()
    key = "canary 'k' $x"
    given = launch(tmp_path, hostfile=hosts(tmp_path), variables={"SWANLAB_API_KEY": key})
    made = render("hostfile", given)
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


def test_a_node_that_fails_fails_the_launch(tmp_path):
    tools = StandIns(tmp_path / "bin", "ssh", "deepspeed")
    (tmp_path / "train.py").touch()
    made = render("hostfile", launch(tmp_path, hostfile=hosts(tmp_path)))
    done = tools.bash(made.text, cwd=tmp_path, STAND_IN_CODE="5", STAND_IN_HOST="node2")
    assert done.returncode == 5, done.stderr


def test_ssh_copies_forwards_and_starts_in_the_background(tmp_path):
    tools = StandIns(tmp_path / "bin", "ssh", "rsync", "deepspeed")
    over_there = tmp_path / "over there"
    given = launch(tmp_path, host="me@gpu1", variables={"NCCL_DEBUG": "a b"})
    made = render("ssh", replace(given, workdir=str(over_there)))
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


@pytest.mark.parametrize(
    ("code", "asked", "requeued"), [(0, 0, False), (75, 0, True), (75, 1, False), (5, 0, False)]
)
def test_slurm_starts_every_rank_and_queues_a_stopped_run_again(code, asked, requeued, tmp_path):
    tools = StandIns(tmp_path / "bin", "srun", "scontrol", "python")
    made = render("slurm", launch(tmp_path, gpus=2))
    assert re.search(r"^#SBATCH --signal=USR1@120$", made.text, re.MULTILINE)

    def change(tool: str, old: str, new: str) -> None:
        path = tmp_path / "bin" / tool
        path.write_text(path.read_text().replace(old, new))

    # The ranks alone end with the code; scontrol lists the nodes.
    change("python", 'get("STAND_IN_CODE"', 'get("RANK_CODE"')
    change("scontrol", "sys.exit(", "print('node1\\nnode2')\nsys.exit(")
    if asked:  # what a rank leaves that `wikillm stop` has reached
        change("python", "line = json", "open(os.environ['WIKILLM_STOP_MARK'], 'w')\nline = json")
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = tools.bash(made.text, cwd=tmp_path, RANK_CODE=str(code), **slurm)
    assert done.returncode == code, done.stderr
    calls = tools.calls()
    ranks = sorted((c for c in calls if c["tool"] == "python"), key=lambda c: c["env"]["RANK"])
    for number, rank in enumerate(ranks):
        env = rank["env"]
        assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == (str(number), "2", "2")
        assert (env["MASTER_ADDR"], env["WIKILLM_NODES"]) == ("node1", "node1,node2")
        assert tuple(rank["argv"]) == ("train.py", "--resume", "auto", *HOSTILE)
    assert len(ranks) == 2 and ranks[0]["env"]["MASTER_PORT"] == "20007"
    assert not (tmp_path / ".stopped-7").exists()
    assert any(c["argv"] == ["requeue", "7"] for c in calls) == requeued


def test_slurm_queues_a_failed_run_again_as_long_as_it_makes_progress(tmp_path):
    """A new checkpoint resets the count; the limit is two failures at the same checkpoint."""
    tools = StandIns(tmp_path / "bin", "srun", "scontrol")
    text = render("slurm", launch(tmp_path, gpus=2, max_restarts=2)).text
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node1"}
    checkpoints = tmp_path / "runs" / "demo" / "checkpoints"
    found = []
    for step, code in ((0, 3), (9, 137), (10, 3), (10, 3), (10, 3), (11, 5)):
        if step:
            (checkpoints / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "bin" / "srun"
        path.write_text(f"#!/bin/sh\nexit {code}\n")
        before = len(tools.calls())
        done = tools.bash(text, cwd=tmp_path, **slurm)
        assert done.returncode == code, done.stderr
        found.append(any(c["argv"] == ["requeue", "7"] for c in tools.calls()[before:]))
    assert found == [True, True, True, True, False, False]
    assert not (tmp_path / ".restarts-7").exists()


def k8s(tmp_path: Path, **changes: object) -> dict[str, Any]:
    return yaml.safe_load(render("k8s", launch(tmp_path, **{"image": "a/b:c", **changes})).text)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    if manifest["kind"] != "Job":
        spec = spec["pytorchReplicaSpecs"]["Worker"]
    return spec["template"]["spec"]


@pytest.mark.parametrize("nodes", [1, 3])
def test_kubernetes_manifests_follow_the_schema_of_kubernetes(tmp_path, nodes):
    """Validates a whole Job, and the pods of a PyTorchJob, whose own schema is Kubeflow's."""
    manifest = k8s(tmp_path, gpus=8, nodes=nodes, variables={"SWANLAB_API_KEY": "canary"})
    assert "canary" not in str(manifest)
    jobs = [manifest]
    if nodes > 1:
        replicas = manifest["spec"]["pytorchReplicaSpecs"]
        assert {name: one["replicas"] for name, one in replicas.items()} == {
            "Master": 1,
            "Worker": nodes - 1,
        }
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": manifest["metadata"]}
        jobs = [{**job, "spec": {"template": one["template"]}} for one in replicas.values()]
    assert manifest["kind"] == ("PyTorchJob" if nodes > 1 else "Job")
    for job in jobs:
        kubernetes_validate.validate(job, desired_version="1.30", strict=True)
        container = job["spec"]["template"]["spec"]["containers"][0]
        # Words reach the run without a shell; $$( keeps Kubernetes from replacing them.
        words = [word.replace("$(", "$$(") for word in HOSTILE]
        assert container["command"][-len(HOSTILE) :] == words
        container["comand"] = []
        with pytest.raises(kubernetes_validate.ValidationError, match="comand"):
            kubernetes_validate.validate(job, desired_version="1.30", strict=True)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_pod_requests_what_it_uses(tmp_path, nodes):
    given = {"gpus": 4, "cpus": 6, "memory": 100 * 2**30, "storage": "my-claim"}
    pod = pod_of(k8s(tmp_path, nodes=nodes, **given))
    resources = pod["containers"][0]["resources"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert resources["requests"] == {"cpu": "24", "memory": "100Gi", "nvidia.com/gpu": 4}
    assert resources["limits"] == {"memory": "100Gi", "nvidia.com/gpu": 4}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "my-claim"
    assert pod["terminationGracePeriodSeconds"] >= 120


@pytest.mark.parametrize(
    "value", ["canary 'k' $x \"y\"", "a=b=c", "#no comment", "trailing ", "秘密"]
)
def test_the_printed_command_makes_the_secret(tmp_path, value):
    """kubectl is a stand-in that keeps its input; the real one reads NAME=value lines verbatim."""
    (tmp_path / "bin").mkdir()
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$*" >>"$OUT/calls"\n[ "$1" = create ] || exit 0\n'
        'for word; do case $word in --from-env-file=*) cat "${word#*=}" >"$OUT/env" ;; esac; done\n'
    )
    kubectl.chmod(0o755)
    variables = {"HF_ENDPOINT": "https://hub", "SWANLAB_API_KEY": value}
    made = render("k8s", launch(tmp_path, gpus=1, image="a", variables=variables))
    assert value not in made.text
    lines = [line for line in made.text.splitlines() if "kubectl create secret" in line]
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    environ = {"PATH": path, "OUT": str(tmp_path), "LANG": "C.UTF-8", "OTHER": "stays", **variables}
    command = ["bash", "-euo", "pipefail", "-c", lines[0].lstrip("# ")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = sorted((tmp_path / "env").read_text().splitlines())
    assert kept == sorted(f"{name}={value}" for name, value in variables.items())
    calls = (tmp_path / "calls").read_text()
    secret = pod_of(yaml.safe_load(made.text))["containers"][0]["envFrom"][0]["secretRef"]["name"]
    assert f"create secret generic {secret} " in calls and "apply -f -" in calls
    assert value not in calls


def test_go_makes_the_secret_through_standard_input_before_the_job(tmp_path):
    variables = {"SWANLAB_API_KEY": "canary"}
    made = render("k8s", launch(tmp_path, gpus=1, image="a", variables=variables))
    secret, job = made.steps
    read = yaml.safe_load(secret.stdin or "")
    kubernetes_validate.validate(read, desired_version="1.30", strict=True)
    assert read["stringData"] == variables and "canary" not in " ".join(secret.argv)
    assert job.argv[-1] == made.file and job.stdin is None


def test_the_parser_of_sky_accepts_the_task(tmp_path):
    """SkyPilot's own parser accepts the task, if it is installed (pip install skypilot)."""
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: pip install skypilot")
    made = render("sky", launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100"))
    (tmp_path / "task.yaml").write_text(made.text, encoding="utf-8")
    task = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    accelerators = next(iter(task.resources)).accelerators
    assert (task.num_nodes, task.workdir, accelerators) == (2, ".", {"H100": 8})


@pytest.mark.parametrize("entry", [("train.py",), ("--module", "wikillm", "train")])
def test_sky_runs_the_words_through_bash_unchanged(tmp_path, entry):
    tools = StandIns(tmp_path / "bin", "torchrun")
    variables = {"HF_ENDPOINT": "x", "SWANLAB_API_KEY": "canary"}
    given = launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100", entry=entry, variables=variables)
    storage = tmp_path / "the storage"
    secrets = frozenset({"SWANLAB_API_KEY"})
    made = render("sky", replace(given, secrets=secrets, workdir=str(storage)))
    assert "canary" not in made.text
    task = yaml.safe_load(made.text)
    assert task["resources"] == {"accelerators": "H100:8"} and task["num_nodes"] == 2
    assert (task["envs"], task["secrets"]) == ({"HF_ENDPOINT": None}, {"SWANLAB_API_KEY": None})
    assert made.steps[0].argv[:4] == ("sky", "launch", "--env", "HF_ENDPOINT")
    assert made.steps[0].argv[4:6] == ("--secret", "SWANLAB_API_KEY")
    assert "make env" not in made.text and ".venv" not in made.text
    installed = "-e ." if entry == ("train.py",) else "wikillm=="
    assert [what for what in ("-e .", "wikillm==") if what in task["setup"]] == [installed]
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    environ = {**nodes, "SKYPILOT_NODE_RANK": "1", "HOME": str(tmp_path)}
    done = tools.bash(task["run"], cwd=tmp_path, **environ)
    assert done.returncode == 0, done.stderr
    argv = tools.calls()[0]["argv"]
    assert argv[argv.index("--master_addr") + 1] == "10.0.0.1"
    assert tuple(argv[-len(HOSTILE) :]) == HOSTILE
    assert argv[argv.index("-m") :][:3] == ["-m", "wikillm", "train"] and "--resume" in argv
    assert f"run.dir={storage}/runs/demo" in argv, "the disk of a preempted machine is lost"
    assert (tmp_path / "stores").resolve() == storage / "stores"


def test_sky_has_a_storage_that_outlives_the_machine(tmp_path):
    def task(**changes: object) -> dict[str, Any]:
        base = {"gpus": 8, "gpu_kind": "H100", "name": "My_Run", "workdir": "/wikillm"}
        return yaml.safe_load(render("sky", launch(tmp_path, **{**base, **changes})).text)

    cached = {"mode": "MOUNT_CACHED"}
    own = {"name": "wikillm-my-run", "persistent": True, **cached}
    assert task()["file_mounts"] == {"/wikillm": own}
    assert task(storage="s3://b/x")["file_mounts"] == {"/wikillm": {"source": "s3://b/x", **cached}}
    assert task(storage="my-volume")["volumes"] == {"/wikillm": "my-volume"}
    several = task(nodes=2)["volumes"]
    assert several == {"/wikillm": "wikillm-my-run"}, "all nodes see one run directory at once"
    run = task(run_dir="/wikillm/here")["run"].split("train", 1)[1].split("run.name")[0]
    assert "run.dir" not in run
    with pytest.raises(ConfigError, match="several nodes"):
        task(nodes=2, storage="s3://b")
    with pytest.raises(ConfigError, match="bucket or a SkyPilot volume"):
        task(storage="s3:/b c")
    for lost in ("runs/x", "/tmp/x", "/wikillm/../x"):
        with pytest.raises(ConfigError, match="not on the storage") as refused:
            task(run_dir=lost)
        assert "run.dir=/wikillm/runs/My_Run" in (refused.value.fix or "")


def test_the_printed_volume_is_one_that_sky_knows(tmp_path):
    made = render("sky", launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100"))
    line = next(line for line in made.text.splitlines() if "printf" in line)
    command = line.lstrip("# ").partition(" && ")[0]
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    volume = yaml.safe_load((tmp_path / "volume.yaml").read_text())
    assert volume["name"] == yaml.safe_load(made.text)["volumes"][str(tmp_path)]
    assert (volume["type"], volume["config"]) == ("k8s-pvc", {"access_mode": "ReadWriteMany"})


def test_kubernetes_keeps_the_run_directory_on_the_claim(tmp_path):
    for kept in (None, "runs/x", "/wikillm/x"):
        k8s(tmp_path, gpus=1, workdir="/wikillm", run_dir=kept)
    for lost in ("/tmp/x", "../x"):
        with pytest.raises(ConfigError, match="not on the storage"):
            k8s(tmp_path, gpus=1, workdir="/wikillm", run_dir=lost)


@pytest.mark.parametrize("target", ["slurm", "hostfile", "ssh"])
def test_without_a_checkout_the_installed_module_is_started(target, tmp_path):
    module = ("--module", "wikillm", "train")
    given = launch(tmp_path, gpus=1, hostfile=hosts(tmp_path), host="me@gpu1", entry=module)
    text = render(target, given).text
    assert "train.py" not in text and re.search(r"(-m|--module) wikillm train", text)


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
def test_a_missing_option_is_named_with_its_flag(target, flag, tmp_path):
    with pytest.raises(ConfigError) as refused:
        render(target, launch(tmp_path))
    assert flag in (refused.value.fix or "")
    assert "None" not in str(refused.value)


def test_an_unknown_target_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError) as refused:
        render("slrum", launch(tmp_path))
    assert refused.value.fix == "slurm"
    assert len(TARGETS) == 8
