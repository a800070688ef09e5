"""Training on several nodes (network namespaces with real sshd), with every launcher and faults.

The default suite has one ZeRO-3 run that loses a node, and a rejected key. The rest takes minutes
and runs with `make multinode` (WIKILLM_MULTINODE=1). Each failure ends within a minute and names
the node.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.netns import Cluster, cluster, missing
from harness.places import ENVIRON, QUIET, SharedPlace, close_to, ends
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.tiny_run import Words

matrix = pytest.mark.skipif(
    not os.environ.get("WIKILLM_MULTINODE"), reason="part of `make multinode`"
)
open_mpi = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="Open MPI is not installed: apt-get install openmpi-bin"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        missing("pdsh") is not None, reason=f"needs network namespaces: {missing('pdsh')}"
    ),
]
FOR_EVER = ("train.max_steps=1000000", "train.lr_scheduler_type=constant_with_warmup")
FEW = ("train.max_steps=4", "train.lr_scheduler_type=constant_with_warmup")


class Place(SharedPlace):
    """With every launcher."""

    def start(
        self, nodes: Cluster, launcher: str, recipe: str, *more: str
    ) -> subprocess.Popen[bytes]:
        argv = {**LAUNCHERS, **BY_HAND}[launcher](self, recipe, self.line(*more))
        return nodes.popen("node1", argv, cwd=self.workdir, log=self.log, **ENVIRON)


def _own(place: Place, recipe: str, line: list[str]) -> list[str]:
    """Without restarts: these tests look at how a run ends."""
    return _restarting(place, recipe, line, "--max-restarts", "0")


def _restarting(place: Place, recipe: str, line: list[str], *how: str) -> list[str]:
    where = ["--hostfile", str(place.hostfile), "--deepspeed", recipe, "--go", *how]
    return [sys.executable, "-m", "wikillm", "launch", "hostfile", *where, *line]


def _pdsh(place: Place, recipe: str, line: list[str]) -> list[str]:
    tool = str(Path(sys.prefix) / "bin" / "deepspeed")
    return [tool, "--hostfile", str(place.hostfile), "train.py", "--deepspeed", recipe, *line]


def _torchrun(place: Place, recipe: str, line: list[str]) -> list[str]:
    """Run the script of `wikillm launch torchrun --print` on both nodes, over ssh on the second."""
    head = (
        f"{Path(sys.prefix) / 'bin' / 'torchrun'} --nnodes 2 --nproc_per_node 1 "
        "--master_addr node1 --master_port 29500"
    )
    script = place.folder / "torchrun.sh"
    exports = " ".join(f"{name}={value}" for name, value in ENVIRON.items())
    script.write_text(
        f"cd {place.workdir} && env {exports} {head} --node_rank $1 "
        f"train.py --deepspeed {recipe} {' '.join(line)}\n"
    )
    return ["sh", "-c", f"ssh node2 sh {script} 1 & sh {script} 0; code=$?; wait; exit $code"]


def _no_ssh(place: Place, recipe: str, line: list[str]) -> list[str]:
    """Start DeepSpeed's launcher with --no_ssh on each node, as a user without ssh does."""
    tool = (
        f"{Path(sys.prefix) / 'bin' / 'deepspeed'} --hostfile {place.hostfile} "
        "--no_ssh --master_addr node1"
    )
    exports = " ".join(f"{name}={value}" for name, value in ENVIRON.items())
    script = place.folder / "no_ssh.sh"
    script.write_text(
        f"cd {place.workdir} && env {exports} {tool} --node_rank $1 "
        f"train.py --deepspeed {recipe} {' '.join(line)}\n"
    )
    return ["sh", "-c", f"ssh node2 sh {script} 1 & sh {script} 0; code=$?; wait; exit $code"]


def _mpi(place: Place, recipe: str, line: list[str]) -> list[str]:
    exports = [word for name in (*ENVIRON, "MASTER_ADDR=node1") for word in ("-x", name)]
    where = ["mpirun", "--allow-run-as-root", "-np", "2", "--host", "node1:1,node2:1", *exports]
    return [*where, sys.executable, "train.py", "--deepspeed", recipe, *line]


LAUNCHERS: dict[str, Callable[[Place, str, list[str]], list[str]]] = {
    "own": _own,
    "pdsh": _pdsh,
    "torchrun": _torchrun,
}
BY_HAND = {"no_ssh": _no_ssh, "mpi": _mpi}


@pytest.fixture
def place(repo: Path, tmp_path: Path, words: Words) -> Place:
    return Place(repo, tmp_path, words)


@pytest.fixture(scope="module")
def on_one_host(words: Words, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of two ranks on this machine, as the reference."""
    line = words(tmp_path_factory.mktemp("one") / "run", *QUIET, *FEW)
    results = run_ranks(train_with_options, 2, line, {"deepspeed": "zero2"})
    assert results[0]["code"] == 0, results[0]["message"]
    return dict(results[0]["losses"])


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "nodes", "node1", "node2") as made:
        yield made


def refused(place: Place, nodes: Cluster) -> str:
    """Start a run that fails before training because of the machines. Return the end of its log."""
    process = place.start(nodes, "own", "zero2", *FEW)
    ends(process, place)
    assert process.returncode == 3, place.tail()
    return place.tail()


def test_a_run_on_two_nodes_and_its_cut_link(
    place: Place, two: Cluster, on_one_host: dict[int, float]
) -> None:
    """ZeRO-3 over ssh matches one host. When node2 loses its link, each side names the other."""
    process = place.start(two, "own", "zero3", *FOR_EVER)
    place.wait_for_steps(process, 20)
    assert close_to(place.losses(), on_one_host)
    said = json.loads(place.wikillm(two, "node2", "status", str(place.run), "--json").stdout)
    assert said["state"] == "running" and said["tokens_per_second"] > 0
    assert [(r["host"], r["interface"], r["running"]) for r in said["ranks"]] == [
        ("node1", "eth0", True),
        ("node2", "eth0", True),
    ]
    two.cut("node2")
    ends(process, place)
    assert process.returncode == 3, place.tail()
    assert "No heartbeat from node2 (10.77.0.2, rank 1)" in place.exit()["reason"]
    assert "No heartbeat from node2" in place.tail()
    deadline = time.monotonic() + 15
    while place.record(1)["exit"] is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "rank 0 on the first node, node1 (10.77.0.1)" in place.record(1)["exit"]["reason"]
    for rank in (0, 1):
        log = (place.run / "logs" / f"rank_{rank}.log").read_text()
        assert "most recent call first" in log and "_inner_training_loop" in log, (
            "the stacks are in the log"
        )


def test_a_node_that_refuses_the_key_is_named(place: Place, tmp_path: Path) -> None:
    with cluster(tmp_path / "nodes", "node1", "node2", wrong_key=["node2"]) as made:
        said = refused(place, made)
    assert "node2: Permission denied" in said and "ssh did not reach, or lost, node2" in said


@matrix
def test_a_node_without_the_checkout_is_named(place: Place, two: Cluster) -> None:
    two.hide("node2", place.workdir)
    said = refused(place, two)
    assert "node2 has no train.py" in said and "node2: exit code 3" in said


@matrix
@pytest.mark.parametrize("recipe", ["zero2", "zero3"])
@pytest.mark.parametrize("launcher", [*LAUNCHERS, "no_ssh", pytest.param("mpi", marks=open_mpi)])
def test_every_launcher_trains_as_one_host_does(
    launcher: str, recipe: str, place: Place, two: Cluster, on_one_host: dict[int, float]
) -> None:
    process = place.start(two, launcher, recipe, *FEW)
    process.wait(240)
    assert process.returncode == 0, place.tail()
    assert close_to(place.losses(), on_one_host) and len(place.losses()) == 4
    assert place.exit()["code"] == 0


@matrix
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_node_that_is_killed_is_named(launcher: str, place: Place, two: Cluster) -> None:
    process = place.start(two, launcher, "zero2", *FOR_EVER)
    place.wait_for_steps(process, 5)
    began = time.monotonic()
    two.kill("node2")
    while not (place.run / "exit.json").exists() and time.monotonic() - began < 60:
        time.sleep(0.2)
    print(f"{launcher}: the run ended {time.monotonic() - began:.1f} s later")
    assert "node2" in place.exit()["reason"] and place.exit()["code"] == 3


@matrix
@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_a_first_node_that_is_lost_sends_one_message(
    fault: str, place: Place, two: Cluster, repo: Path
) -> None:
    """Both nodes have a receiver on their loopback: with a cut link both sides see an end."""
    heard = place.folder / "heard"
    receiver = [sys.executable, "-m", "harness.alert_receivers", "8099", str(heard)]
    paths = {"PYTHONPATH": f"{repo / 'tests'}{os.pathsep}{repo}"}
    receivers = [
        two.popen(node, receiver, cwd=repo, log=place.folder / f"{node}.log", **paths)
        for node in ("node1", "node2")
    ]
    line = place.line(*FOR_EVER, "alerts.webhook=WIKILLM_HOOK", "train.lost_seconds=10")
    hook = {"WIKILLM_HOOK": "http://127.0.0.1:8099/canary-token"}
    words = _own(place, "zero2", line)
    process = two.popen("node1", words, cwd=place.workdir, log=place.log, **ENVIRON, **hook)
    try:
        place.wait_for_steps(process, 5)
        getattr(two, fault)("node1")
        deadline = time.monotonic() + 60
        while not heard.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(15)  # the other side's message, if there were one
    finally:
        for each in receivers:
            each.kill()
    (message,) = [json.loads(each) for each in heard.read_text().splitlines()]
    assert message["event"] == "lost", message
    assert message["host"] == "node2" or fault == "cut"
    assert "canary-token" not in place.tail()


@matrix
def test_a_rank_that_is_killed_ends_the_run_at_once(place: Place, two: Cluster) -> None:
    process = place.start(two, "own", "zero2", *FOR_EVER)
    place.wait_for_steps(process, 5)
    os.kill(place.record(1)["process"]["pid"], signal.SIGKILL)
    ends(process, place)
    assert process.returncode == 3
    assert "rank 1 on node2" in place.exit()["reason"]


@matrix
def test_a_stalled_rank_is_named_with_its_stacks(place: Place, two: Cluster) -> None:
    """After SIGSTOP to rank 1 its agent still sends heartbeats. The waiting rank logs its stack."""
    process = place.start(two, "own", "zero2", *FOR_EVER, "train.stall_seconds=15")
    place.wait_for_steps(process, 5)
    pid = place.record(1)["process"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(pid, signal.SIGCONT)
    place.wait_for_steps(process, len(place.losses()) + 20)  # a short stop is tolerated
    os.kill(pid, signal.SIGSTOP)
    ends(process, place)
    assert process.returncode == 3
    assert "No progress for" in place.exit()["reason"]
    assert "node2 (10.77.0.2, rank 1) blocks the other ranks" in place.exit()["reason"]
    assert "rank 1 on node2: step (stopped by a signal)" in place.exit()["reason"]
    assert "_inner_training_loop" in (place.run / "logs" / "rank_0.log").read_text()


@matrix
def test_a_late_node_is_waited_for_and_then_named(place: Place, two: Cluster) -> None:
    tool = str(Path(sys.prefix) / "bin" / "deepspeed")
    argv = [tool, "--hostfile", str(place.hostfile), "--no_ssh", "--node_rank", "0"]
    argv += ["--master_addr", "node1", "train.py", "--deepspeed", "zero2"]
    argv += place.line(*FEW, "train.rendezvous_seconds=20")
    process = two.popen(
        "node1", argv, cwd=place.workdir, log=place.log, **ENVIRON, WIKILLM_NODES="node1,node2"
    )
    ends(process, place)
    assert process.returncode == 3
    assert "node2 (rank 1) did not join within 20" in place.tail()


@matrix
def test_a_host_that_is_loopback_on_itself_is_named(place: Place, tmp_path: Path) -> None:
    with cluster(
        tmp_path / "nodes", "node1", "node2", hosts={"node1": {"node1": "127.0.1.1"}}
    ) as made:
        said = refused(place, made)
    assert "node1 is 127.0.1.1 on node1" in said and "eth0 10.77.0.1" in said


@matrix
def test_a_taken_port_is_named(place: Place, two: Cluster) -> None:
    code = (
        "import socket, time; s = socket.socket(); s.bind(('', 29500)); s.listen(); time.sleep(120)"
    )
    two.popen("node1", [sys.executable, "-c", code], cwd=place.folder, log=place.log)
    assert "Port 29500 of node1, the rendezvous port, is in use" in refused(place, two)


@matrix
def test_different_code_on_one_node_is_named(place: Place, two: Cluster, repo: Path) -> None:
    other = place.folder / "other"
    subprocess.run(["cp", "-r", str(repo / "wikillm"), str(other)], check=True)
    with (other / "__init__.py").open("a") as file:
        file.write("\n# changed\n")
    target = (place.workdir / "wikillm").resolve()
    subprocess.run(two.command("node2", "mount", "--bind", str(other), str(target)), check=True)
    process = place.start(two, "own", "zero2", *FEW)
    ends(process, place)
    assert process.returncode == 3
    assert "wikillm's code" in place.tail() and "node2" in place.tail()


@matrix
@pytest.mark.parametrize("launcher", ["own", "pdsh"])
def test_stop_saves_on_all_nodes_and_ends_no_other_run(
    launcher: str, place: Place, two: Cluster, tmp_path: Path
) -> None:
    bystander = two.popen(
        "node2",
        [sys.executable, "-c", "import time; time.sleep(300) # train.py"],
        cwd=tmp_path,
        log=place.log,
    )
    process = place.start(two, launcher, "zero2", *FOR_EVER)
    place.wait_for_steps(process, 5)
    done = place.wikillm(two, "node2", "stop", str(place.run))
    assert done.returncode == 0, done.stderr
    assert "ended: 2 ranks" in done.stdout
    process.wait(30)
    assert place.exit()["code"] == 75
    assert list((place.run / "checkpoints").glob("checkpoint-*")), "it saved"
    assert bystander.poll() is None
    said = json.loads(place.wikillm(two, "node1", "status", str(place.run), "--json").stdout)
    assert said["state"] == "stopped" and not any(rank["running"] for rank in said["ranks"])


@matrix
def test_stop_now_ends_a_run_without_saving(place: Place, two: Cluster) -> None:
    process = place.start(two, "own", "zero2", *FOR_EVER)
    place.wait_for_steps(process, 5)
    done = place.wikillm(two, "node1", "stop", str(place.run), "--now")
    assert done.returncode == 0, done.stderr
    process.wait(40)
    assert place.exit()["code"] == 75 and "--now" in place.exit()["reason"]
    assert not list((place.run / "checkpoints").glob("checkpoint-*"))


def test_nodes_have_names_of_their_own(two: Cluster, tmp_path: Path) -> None:
    """Each node has its own hostname. The other tests rely on this."""
    names = [
        two.run(name, ["hostname"], cwd=tmp_path).stdout.strip() for name in ("node1", "node2")
    ]
    assert names == ["node1", "node2"] and socket.gethostname() not in names
