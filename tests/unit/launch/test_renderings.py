"""Renderings are run, not read: launchers and cluster tools are stand-ins that record what reached them."""

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


def test_an_ipv6_rendezvous_has_brackets_where_a_port_follows(tmp_path: Path) -> None:
    given = launch(tmp_path, gpus=2, nodes=2, master_addr="2001:db8::1")
    assert "[2001:db8::1]:29500" in render("torchrun", replace(given, max_restarts=1)).text
    assert "--master_addr 2001:db8::1" in render("torchrun", given).text


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
    made = render(
        "hostfile", launch(tmp_path, hostfile=hosts(tmp_path), variables={"SWANLAB_API_KEY": key})
    )
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
    made = render(
        "ssh",
        launch(tmp_path, host="me@gpu1", workdir=str(over_there), variables={"NCCL_DEBUG": "a b"}),
    )
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
    scontrol.write_text(
        scontrol.read_text().replace("sys.exit(", "print('node1\\nnode2')\nsys.exit(")
    )
    if asked:  # what a rank leaves that `wikillm stop` has reached
        path = tmp_path / "bin" / "python"
        path.write_text(
            path.read_text().replace(
                "line = json", "open(os.environ['WIKILLM_STOP_MARK'], 'w')\nline = json"
            )
        )
    slurm = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "RANK_CODE": str(code),
    }
    done = tools.bash(made.text, cwd=tmp_path, **slurm)
    assert done.returncode == code, done.stderr
    ranks = sorted(
        (c for c in tools.calls() if c["tool"] == "python"), key=lambda call: call["env"]["RANK"]
    )
    assert [
        (c["env"]["RANK"], c["env"]["WORLD_SIZE"], c["env"]["LOCAL_WORLD_SIZE"]) for c in ranks
    ] == [("0", "2", "2"), ("1", "2", "2")]
    assert all(tuple(c["argv"]) == ("train.py", "--resume", "auto", *HOSTILE) for c in ranks)
    assert (ranks[1]["env"]["MASTER_ADDR"], ranks[1]["env"]["WIKILLM_NODES"]) == (
        "node1",
        "node1,node2",
    )
    assert ranks[0]["env"]["MASTER_PORT"] == "20007" and not (tmp_path / ".stopped-7").exists()
    asked = [c["argv"] for c in tools.calls() if c["tool"] == "scontrol"]
    assert (["requeue", "7"] in asked) == requeued


def test_kubernetes_passes_words_without_a_shell_and_values_by_secret(tmp_path: Path) -> None:
    made = render(
        "k8s",
        launch(tmp_path, gpus=8, nodes=2, image="a/b:c", variables={"SWANLAB_API_KEY": "canary"}),
    )
    assert "canary" not in made.text
    manifest = yaml.safe_load(made.text)
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert (manifest["kind"], replicas["Master"]["replicas"], replicas["Worker"]["replicas"]) == (
        "PyTorchJob",
        1,
        1,
    )
    container = replicas["Worker"]["template"]["spec"]["containers"][0]
    assert container["command"][-len(HOSTILE) :] == [word.replace("$(", "$$(") for word in HOSTILE]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert yaml.safe_load(render("k8s", launch(tmp_path, gpus=1, image="a")).text)["kind"] == "Job"


@pytest.mark.parametrize("nodes", [1, 3])
def test_kubernetes_manifests_keep_the_schema_of_kubernetes(tmp_path: Path, nodes: int) -> None:
    """A Job as a whole; of a PyTorchJob, whose schema is Kubeflow's, the pods."""
    made = render(
        "k8s", launch(tmp_path, gpus=8, nodes=nodes, image="a/b:c", variables={"HF_ENDPOINT": "x"})
    )
    manifest = yaml.safe_load(made.text)
    if nodes > 1:
        replicas = manifest["spec"]["pytorchReplicaSpecs"].values()
        jobs = [
            {**_JOB, "metadata": manifest["metadata"], "spec": {"template": one["template"]}}
            for one in replicas
        ]
    else:
        jobs = [manifest]
    for job in jobs:
        kubernetes_validate.validate(job, desired_version="1.30", strict=True)
        job["spec"]["template"]["spec"]["containers"][0]["comand"] = []
        with pytest.raises(kubernetes_validate.ValidationError, match="comand"):
            kubernetes_validate.validate(job, desired_version="1.30", strict=True)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec = manifest["spec"]
    return (spec if manifest["kind"] == "Job" else spec["pytorchReplicaSpecs"]["Worker"])[
        "template"
    ]["spec"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_pod_asks_for_what_it_uses(tmp_path: Path, nodes: int) -> None:
    given = launch(
        tmp_path, gpus=4, nodes=nodes, image="a", cpus=6, memory=100 * 2**30, storage="my-claim"
    )
    pod = pod_of(yaml.safe_load(render("k8s", given).text))
    resources, volumes = (
        pod["containers"][0]["resources"],
        {volume["name"]: volume for volume in pod["volumes"]},
    )
    assert resources["requests"] == {"cpu": "24", "memory": "100Gi", "nvidia.com/gpu": 4}
    assert resources["limits"] == {"memory": "100Gi", "nvidia.com/gpu": 4}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == "my-claim"
    assert pod["terminationGracePeriodSeconds"] >= 120


@pytest.mark.parametrize(
    "value", ["canary 'k' $x \"y\"", "a=b=c", "#no comment", "trailing ", "秘密"]
)
def test_the_printed_command_makes_the_secret(tmp_path: Path, value: str) -> None:
    """kubectl is a stand-in that keeps what it reads; the real one takes NAME=value lines as they are."""
    (tmp_path / "bin").mkdir()
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$*" >>"$OUT/calls"\n'
        'case "$1" in create) for word; do case $word in --from-env-file=*) cat "${word#*=}" >"$OUT/env" ;; esac; done ;; esac\n'
    )
    kubectl.chmod(0o755)
    variables = {"HF_ENDPOINT": "https://hub", "SWANLAB_API_KEY": value}
    made = render("k8s", launch(tmp_path, gpus=1, image="a", variables=variables))
    assert value not in made.text
    command = next(
        line for line in made.text.splitlines() if "kubectl create secret" in line
    ).lstrip("# ")
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    environ = {"PATH": path, "OUT": str(tmp_path), "LANG": "C.UTF-8", "OTHER": "stays", **variables}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "env").read_text().splitlines()) == sorted(
        f"{n}={v}" for n, v in variables.items()
    )
    calls = (tmp_path / "calls").read_text()
    wanted = pod_of(yaml.safe_load(made.text))["containers"][0]["envFrom"][0]["secretRef"]["name"]
    assert (
        f"create secret generic {wanted} " in calls and "apply -f -" in calls and value not in calls
    )


def test_go_makes_the_secret_through_standard_input_before_the_job(tmp_path: Path) -> None:
    made = render(
        "k8s", launch(tmp_path, gpus=1, image="a", variables={"SWANLAB_API_KEY": "canary"})
    )
    secret, job = made.steps
    read = yaml.safe_load(secret.stdin or "")
    kubernetes_validate.validate(read, desired_version="1.30", strict=True)
    assert read["stringData"] == {"SWANLAB_API_KEY": "canary"} and "canary" not in " ".join(
        secret.argv
    )
    assert job.argv[-1] == made.file and job.stdin is None


def test_sky_reads_its_task(tmp_path: Path) -> None:
    """SkyPilot's own parser, where it is installed (pip install skypilot)."""
    sky = pytest.importorskip("sky", reason="SkyPilot is not installed: pip install skypilot")
    made = render("sky", launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100"))
    (tmp_path / "task.yaml").write_text(made.text, encoding="utf-8")
    task = sky.Task.from_yaml(str(tmp_path / "task.yaml"))
    assert (task.num_nodes, task.workdir, next(iter(task.resources)).accelerators) == (
        2,
        ".",
        {"H100": 8},
    )


@pytest.mark.parametrize("entry", [("train.py",), ("--module", "wikillm", "train")])
def test_sky_runs_the_words_through_bash_unchanged(tmp_path: Path, entry: tuple[str, ...]) -> None:
    tools = StandIns(tmp_path / "bin", "torchrun")
    variables = {"HF_ENDPOINT": "x", "SWANLAB_API_KEY": "canary"}
    given = launch(
        tmp_path,
        gpus=8,
        nodes=2,
        gpu_kind="H100",
        variables=variables,
        secrets=frozenset({"SWANLAB_API_KEY"}),
    )
    made = render("sky", replace(given, entry=entry, workdir=str(tmp_path / "the storage")))
    assert "canary" not in made.text
    task = yaml.safe_load(made.text)
    assert task["resources"] == {"accelerators": "H100:8"} and task["num_nodes"] == 2
    assert (task["envs"], task["secrets"]) == ({"HF_ENDPOINT": None}, {"SWANLAB_API_KEY": None})
    assert "make env" not in made.text and ".venv" not in made.text
    assert ("-e ." in task["setup"]) == (entry == ("train.py",)) and (
        "wikillm==" in task["setup"]
    ) == (len(entry) > 1)
    sky = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = tools.bash(task["run"], cwd=tmp_path, HOME=str(tmp_path), **sky)
    assert done.returncode == 0, done.stderr
    argv = tools.calls()[0]["argv"]
    assert (
        argv[argv.index("--master_addr") + 1] == "10.0.0.1"
        and tuple(argv[-len(HOSTILE) :]) == HOSTILE
    )
    assert argv[argv.index("-m") :][:3] == ["-m", "wikillm", "train"] and "--resume" in argv
    assert f"run.dir={tmp_path}/the storage/runs/demo" in argv, "a preempted machine's disk is gone"
    assert (tmp_path / "stores").resolve() == tmp_path / "the storage" / "stores"
    assert made.steps[0].argv[:6] == (
        "sky",
        "launch",
        "--env",
        "HF_ENDPOINT",
        "--secret",
        "SWANLAB_API_KEY",
    )


def test_sky_has_a_storage_that_outlives_the_machine(tmp_path: Path) -> None:
    def task(**changes: object) -> dict[str, Any]:
        given = launch(
            tmp_path, gpus=8, gpu_kind="H100", name="My_Run", **{"workdir": "/wikillm", **changes}
        )
        return yaml.safe_load(render("sky", given).text)

    cached = {"mode": "MOUNT_CACHED"}
    assert task()["file_mounts"] == {
        "/wikillm": {"name": "wikillm-my-run", "persistent": True, **cached}
    }
    assert task(storage="s3://b/x")["file_mounts"] == {"/wikillm": {"source": "s3://b/x", **cached}}
    assert task(storage="my-volume")["volumes"] == {"/wikillm": "my-volume"}
    assert task(nodes=2)["volumes"] == {"/wikillm": "wikillm-my-run"}, (
        "all nodes see one run directory at once"
    )
    assert (
        "run.dir"
        not in task(run_dir="/wikillm/here")["run"].split("train", 1)[1].split("run.name")[0]
    )
    with pytest.raises(ConfigError, match="several nodes"):
        task(nodes=2, storage="s3://b")
    with pytest.raises(ConfigError, match="bucket or a SkyPilot volume"):
        task(storage="s3:/b c")
    for lost in ("runs/x", "/tmp/x", "/wikillm/../x"):
        with pytest.raises(ConfigError, match="not on the storage") as refused:
            task(run_dir=lost)
        assert "run.dir=/wikillm/runs/My_Run" in (refused.value.fix or "")


def test_the_printed_volume_is_one_that_sky_knows(tmp_path: Path) -> None:
    made = render("sky", launch(tmp_path, gpus=8, nodes=2, gpu_kind="H100"))
    command = (
        next(line for line in made.text.splitlines() if "printf" in line)
        .lstrip("# ")
        .split(" && ")[0]
    )
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
    volume = yaml.safe_load((tmp_path / "volume.yaml").read_text())
    assert volume["name"] == yaml.safe_load(made.text)["volumes"][str(tmp_path)]
    assert (volume["type"], volume["config"]) == ("k8s-pvc", {"access_mode": "ReadWriteMany"})


def test_kubernetes_keeps_the_run_directory_on_the_claim(tmp_path: Path) -> None:
    given = {"gpus": 1, "image": "a", "workdir": "/wikillm"}
    for kept in (None, "runs/x", "/wikillm/x"):
        render("k8s", launch(tmp_path, run_dir=kept, **given))
    for lost in ("/tmp/x", "../x"):
        with pytest.raises(ConfigError, match="not on the storage"):
            render("k8s", launch(tmp_path, run_dir=lost, **given))


@pytest.mark.parametrize("target", ["slurm", "hostfile", "ssh"])
def test_without_a_checkout_the_installed_module_is_started(target: str, tmp_path: Path) -> None:
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
def test_what_is_missing_is_named(target: str, flag: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        render(target, launch(tmp_path))
    assert flag in (refused.value.fix or "")


def test_an_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        render("slrum", launch(tmp_path))
    assert refused.value.fix == "slurm"
    assert len(TARGETS) == 8
