"""Test hosts: network namespaces on one bridge, each with its own sshd and hostname.

A node has its own network (10.77.0.N on eth0), hostname and /etc/hosts. The file system and the
CPUs are those of this machine, so all nodes share every folder. The bridge is in a namespace too,
and this machine's own network is not changed. Keys, known_hosts and the ssh configuration are
deleted with the folder, and ~/.ssh is not used. Needs root and Debian's openssh-server and
iproute2. `missing()` reports what is absent, for a counted skip.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NET = "10.77.0"
SSHD = "/usr/sbin/sshd"
TOOLS = {
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@functools.cache
def missing(*more: str) -> str | None:
    """Return why nodes cannot be created here, or None. `more`: further tools, such as "pdsh"."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [
        f"{tool} ({TOOLS.get(tool, tool)})"
        for tool in (*TOOLS, *more)
        if shutil.which(tool, path=_PATH) is None
    ]
    lacking += [] if Path(SSHD).exists() else [f"{SSHD} (openssh-server)"]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    name = f"wikitry{os.getpid()}"
    try:
        _do("ip", "netns", "add", name)
        _do("ip", "-n", name, "link", "add", "br0", "type", "bridge")
        _do("ip", "-n", name, "link", "add", "a0", "type", "veth", "peer", "name", "b0")
        _do("ip", "netns", "exec", name, "unshare", "--mount", "--uts", "true")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    finally:
        subprocess.run(
            ["ip", "netns", "del", name], env=_environ(), capture_output=True, check=False
        )
    return None


@dataclass
class Node:
    """A host of the cluster: the name of its network namespace, and the sshd that keeps it open."""

    name: str
    address: str
    namespace: str
    sshd: subprocess.Popen[bytes] | None = None


@dataclass
class Cluster:
    """The nodes, and operations on them. Everything below `folder` is removed at the end."""

    folder: Path
    switch: str  # the namespace of the bridge
    nodes: dict[str, Node] = field(default_factory=dict)

    def environ(self, **more: str) -> dict[str, str]:
        """This process's environment with our ssh (temporary keys) first on PATH."""
        return {**os.environ, "PATH": f"{self.folder / 'bin'}:{_PATH}", **more}

    def command(self, name: str, *argv: str) -> list[str]:
        """Return the command that runs `argv` on a node without ssh."""
        sshd = self.nodes[name].sshd
        if sshd is None:
            raise RuntimeError(f"{name} does not run")
        return ["nsenter", f"--target={sshd.pid}", "--net", "--mount", "--uts", "--", *argv]

    def popen(
        self, name: str, argv: Sequence[str], *, cwd: Path, log: Path, **more: str
    ) -> subprocess.Popen[bytes]:
        """Start `argv` on a node. Both outputs go to `log`. Ends at the latest with the cluster."""
        words = self.command(name, "env", "-C", str(cwd), *argv)
        with log.open("ab") as out:
            return subprocess.Popen(
                words,
                env=self.environ(**more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run(
        self, name: str, argv: Sequence[str], *, cwd: Path, timeout: float = 120, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on a node, wait for its end and capture the output."""
        words = self.command(name, "env", "-C", str(cwd), *argv)
        return subprocess.run(
            words,
            env=self.environ(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def cut(self, name: str) -> None:
        """Set the node's link down. Packets are lost, and connections are not reset."""
        _do("ip", "-n", self.switch, "link", "set", f"p-{name}", "down")

    def join(self, name: str) -> None:
        """Set the link up again."""
        _do("ip", "-n", self.switch, "link", "set", f"p-{name}", "up")

    def pids(self, name: str) -> list[int]:
        """Processes in the node's network, sshd among them."""
        return [int(pid) for pid in _do("ip", "netns", "pids", self.nodes[name].namespace).split()]

    def kill(self, name: str) -> None:
        """End all processes of the node at once, as a power cut does. Its link goes down first."""
        self.cut(name)
        self._end(name)

    def hide(self, name: str, path: Path) -> None:
        """Make `path` an empty folder on this node only."""
        _do(*self.command(name, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)))

    def _end(self, name: str) -> None:
        for pid in self.pids(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if (sshd := self.nodes[name].sshd) is not None:
            sshd.wait()

    def close(self) -> None:
        """End all processes in the namespaces and remove the namespaces."""
        for name, node in self.nodes.items():
            with suppress(subprocess.CalledProcessError):
                self._end(name)
            subprocess.run(
                ["ip", "netns", "del", node.namespace],
                env=_environ(),
                capture_output=True,
                check=False,
            )
        subprocess.run(
            ["ip", "netns", "del", self.switch], env=_environ(), capture_output=True, check=False
        )


@contextmanager
def cluster(
    folder: Path,
    *names: str,
    hosts: Mapping[str, Mapping[str, str]] | None = None,
    wrong_key: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Start nodes called `names` that reach each other by ssh.

    Args:
        folder: keys, configuration and logs.
        hosts: node -> {name: address}, false entries for its /etc/hosts.
        wrong_key: nodes that accept a key other than ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Cluster(folder, f"wikisw{os.getpid()}")
    try:
        _write_keys(folder)
        _do("ip", "netns", "add", made.switch)
        _do("ip", "-n", made.switch, "link", "add", "br0", "type", "bridge")
        _do("ip", "-n", made.switch, "link", "set", "br0", "up")
        for number, name in enumerate(names, start=1):
            made.nodes[name] = Node(name, f"{NET}.{number}", f"wiki{os.getpid()}-{name}")
            _plug_in(made, made.nodes[name])
        _write_ssh(made)
        for node in made.nodes.values():
            _start_sshd(
                made, node, (hosts or {}).get(node.name, {}), accepts=node.name not in wrong_key
            )
        for node in made.nodes.values():
            _wait_for_sshd(made, node)
        yield made
    finally:
        made.close()


def _plug_in(made: Cluster, node: Node) -> None:
    inside = node.namespace
    port = f"p-{node.name}"
    _do("ip", "netns", "add", inside)
    _do("ip", "-n", inside, "link", "set", "lo", "up")
    _do(
        "ip",
        "-n",
        made.switch,
        "link",
        "add",
        port,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        inside,
    )
    _do("ip", "-n", made.switch, "link", "set", port, "master", "br0", "up")
    _do("ip", "-n", inside, "addr", "add", f"{node.address}/24", "dev", "eth0")
    _do("ip", "-n", inside, "link", "set", "eth0", "up")


def _write_keys(folder: Path) -> None:
    for name in ("host_key", "user_key", "other_key"):
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name))
    for name in ("user_key", "other_key"):
        shutil.copy(folder / f"{name}.pub", folder / f"accepts_{name}")


def _write_ssh(made: Cluster) -> None:
    folder = made.folder
    key = (made.folder / "host_key.pub").read_text().split()[:2]
    lines = [f"{node.name},{node.address} {' '.join(key)}" for node in made.nodes.values()]
    (folder / "known_hosts").write_text("\n".join(lines) + "\n")
    (folder / "config").write_text(
        f"Host *\n  User root\n  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n"
    )
    tool = folder / "bin" / "ssh"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {shlex.quote(str(folder / "config"))} "$@"\n'
    )
    tool.chmod(0o755)


def _start_sshd(made: Cluster, node: Node, lies: Mapping[str, str], *, accepts: bool) -> None:
    names = {other.name: other.address for other in made.nodes.values()} | dict(lies)
    hosts = made.folder / f"hosts.{node.name}"
    settings = made.folder / f"sshd.{node.name}"
    hosts.write_text(
        "127.0.0.1 localhost\n::1 localhost\n"
        + "".join(f"{address} {name}\n" for name, address in names.items())
    )
    key = made.folder / f"accepts_{'user' if accepts else 'other'}_key"
    settings.write_text(
        f"Port 22\nListenAddress 0.0.0.0\nHostKey {made.folder / 'host_key'}\n"
        f"AuthorizedKeysFile {key}\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM no\nStrictModes no\nPidFile none\nUseDNS no\nMaxStartups 50\n"
        f"SetEnv PATH={made.folder / 'bin'}:{_PATH}\n"
    )
    # sshd requires this folder. On Debian the service creates it.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    # There is no name server: names are in /etc/hosts or fail at once.
    resolver = made.folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    inner = (
        f"mount --bind {shlex.quote(str(hosts))} /etc/hosts && "
        f"mount --bind {shlex.quote(str(resolver))} /etc/resolv.conf && hostname {node.name} && "
        f"exec {SSHD} -D -e -f {shlex.quote(str(settings))}"
    )
    with (made.folder / f"sshd.{node.name}.log").open("ab") as log:
        node.sshd = subprocess.Popen(
            ["ip", "netns", "exec", node.namespace, "unshare", "--mount", "--uts",
             "sh", "-c", inner],
            env=_environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def _wait_for_sshd(made: Cluster, node: Node) -> None:
    """Wait until sshd listens. Its namespaces exist by then."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if f":{22:04X} " in _listening(node):
            return
        if node.sshd is not None and node.sshd.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(
        f"sshd of {node.name}: " + (made.folder / f"sshd.{node.name}.log").read_text()
    )


def _listening(node: Node) -> str:
    """Local addresses in state LISTEN (0A), from the node's socket table."""
    if node.sshd is None:
        return ""
    with suppress(OSError):
        lines = Path(f"/proc/{node.sshd.pid}/net/tcp").read_text().splitlines()[1:]
        if Path(f"/proc/{node.sshd.pid}/comm").read_text().strip() == "sshd":
            return "".join(f"{words[1]} " for line in lines if (words := line.split())[3] == "0A")
    return ""


def _environ() -> dict[str, str]:
    return {**os.environ, "PATH": _PATH}


def _do(*argv: str) -> str:
    done = subprocess.run(
        argv, env=_environ(), capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
    return done.stdout
