"""Examines all nodes of a hostfile over ssh, in at most `SECONDS`.

In three rounds every node answers one request of `doctor.node`: examine yourself, meet the others,
take part in an all-reduce. A node that does not answer is dropped with the reason.
"""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from wikillm.core.errors import MachineError
from wikillm.doctor import nodes
from wikillm.doctor.checks import Finding, declared, fail
from wikillm.doctor.examine import Examination
from wikillm.doctor.needs import Needs
from wikillm.doctor.node import MARK
from wikillm.doctor.probe import in_time
from wikillm.doctor.software import INSTALL
from wikillm.remote.ssh import ssh_argv

SECONDS = 58.0
EXAMINE = 45.0
MEET = 14.0
REDUCE = 22.0
LEAST_FOR_REDUCE = 12.0
"""Limits of the rounds in seconds; the first one includes the login and the start of Python."""
MOST_PEERS = 16
"""Up to this number of nodes, each connects to all others; of more, to the first and next two."""
CLUSTER_CHECKS = tuple(check for check in declared(nodes) if check is not nodes.REACH)

_REASONS = {
    "host key verification failed": (
        "its host key is not the known one",
        "if it was reinstalled: ssh-keygen -R {node}, then ssh {node} once",
    ),
    "permission denied (": ("no login without a password", "ssh-copy-id {node}"),
    "cd: ": ("the checkout is not at the same path", nodes.SAME_FOLDER),
    "python: ": ("WikiLLM does not start there", f"on {{node}}: {INSTALL}"),
    "traceback": ("WikiLLM does not start there", f"on {{node}}: {INSTALL}"),
}
"""Words in an error of ssh, the shell or Python -> what follows, and the fix."""


def examine_nodes(
    slots: Mapping[str, int], needs: Needs, *, workdir: str, environment: Mapping[str, str]
) -> Examination:
    """Examine all nodes.

    Args:
        slots: processes of each host, in the order of the hostfile.
        workdir: the checkout on the nodes.
        environment: the variables that a run would get there.
    """
    start = time.monotonic()
    token = secrets.token_hex(8)
    requests = {
        name: {
            "needs": asdict(replace(needs, slots=count)),
            "name": name,
            "token": token,
            "environment": dict(environment),
        }
        for name, count in slots.items()
    }
    session = Session(workdir, start + SECONDS)
    try:
        answers = session.ask("examine", EXAMINE, requests)
        facts = {name: answer["facts"] for name, answer in answers.items()}
        cluster = nodes.ClusterFacts(slots, facts, session.lost)
        if len(answers) > 1:
            _meet(session, cluster, answers)
            cluster.all_reduce = _reduce(session, cluster, answers)
    finally:
        session.close()
    findings = [nodes.REACH(session.lost.get(name), name) for name in slots]
    if len(slots) > 1:
        findings += [check(cluster) for check in CLUSTER_CHECKS]
    for answer in answers.values():
        findings += [Finding(**finding) for finding in answer["findings"]]
    return Examination(tuple(slots), tuple(findings), time.monotonic() - start)


def _meet(
    session: Session, cluster: nodes.ClusterFacts, answers: Mapping[str, dict[str, Any]]
) -> None:
    """Every node looks for the files of all others and connects to its peers."""
    addresses = cluster.addresses()
    write_errors = {name: answer["write_error"] for name, answer in answers.items()}
    written = [name for name, error in write_errors.items() if not error]
    requests = {}
    for name in answers:
        known = [peer for peer in peers_of(name, list(answers)) if peer in addresses]
        peers = [(peer, addresses[peer], answers[peer]["ports"]) for peer in known]
        requests[name] = {"written": written, "peers": peers}
    for name, found in session.ask("meet", MEET, requests).items():
        cluster.shared[name] = write_errors[name] or found["missing"]
        for peer, error in found["errors"].items():
            cluster.connections[name, peer] = error


def _reduce(
    session: Session, cluster: nodes.ClusterFacts, answers: Mapping[str, dict[str, Any]]
) -> float | str:
    """Bytes per second of a collective of all reachable nodes, or why there is none."""
    names = [name for name in answers if name not in session.lost]
    addresses = cluster.addresses()
    if any(cluster.connections.values()) or len(names) < 2 or not set(names) <= set(addresses):
        return "not measured: the nodes do not all reach each other"
    if session.remaining < LEAST_FOR_REDUCE:
        return "not measured: the time was used up"
    first = names[0]
    meeting = {
        "world": len(names),
        "address": addresses[first],
        "port": answers[first]["free_port"],
    }
    requests = {name: {"rank": rank, **meeting} for rank, name in enumerate(names)}
    results = session.ask("reduce", REDUCE, requests)
    errors = {name: session.lost[name].found for name in names if name in session.lost}
    errors |= {name: result["error"] for name, result in results.items() if "error" in result}
    if errors:
        return "; ".join(f"{name}: {error}" for name, error in errors.items())
    return float(results[first]["bytes_per_second"])


def peers_of(name: str, names: list[str]) -> list[str]:
    """The nodes that a node connects to."""
    if len(names) <= MOST_PEERS:
        return [peer for peer in names if peer != name]
    position = names.index(name)
    near = [names[0], *(names[(position + k) % len(names)] for k in (1, 2))]
    return [peer for peer in dict.fromkeys(near) if peer != name]


class Session:
    """Connections to the nodes. `deadline` is a value of time.monotonic().

    Nodes that did not answer are in `lost`, with the finding that says why.
    """

    def __init__(self, workdir: str, deadline: float) -> None:
        self.workdir = workdir
        self.deadline = deadline
        self.lost: dict[str, Finding] = {}
        self._open: dict[str, Connection] = {}

    @property
    def remaining(self) -> float:
        return max(0.1, self.deadline - time.monotonic())

    def ask(
        self, command: str, seconds: float, requests: Mapping[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """Send each node its arguments, all at once. Returns the answers within `seconds`."""
        for name in requests.keys() - self._open.keys() - self.lost.keys():
            self._open[name] = Connection(name, self.workdir)
        limit = min(seconds, self.remaining)
        jobs = {
            name: partial(self._open[name].ask, command, arguments)
            for name, arguments in requests.items()
            if name in self._open
        }
        answers = in_time(jobs, limit)
        values: dict[str, Any] = {}
        for name in jobs:
            answer = answers.get(name)
            if answer is not None and "value" in answer:
                values[name] = answer["value"]
                continue
            connection = self._open.pop(name)
            if answer is None:
                found = f"no answer to {command!r} within {limit:.0f} s"
                fix = f"is it on, is its name right? ssh {name}"
                self.lost[name] = fail(found, "the node does not answer", fix)
            elif "error" in answer:
                why = "WikiLLM there differs from the one here, or a check is broken"
                found = f"{command}: {answer['error']}"
                self.lost[name] = fail(found, why, "check out one commit on all nodes")
            else:
                self.lost[name] = connection.why_it_ended()
            connection.close()
        return values

    def close(self) -> None:
        for connection in self._open.values():
            connection.end_input()
        for connection in self._open.values():
            connection.close()


class Connection:
    """ssh to the process `doctor.node` of one node. Raises MachineError without ssh here."""

    def __init__(self, node: str, workdir: str) -> None:
        self.node = node
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                ssh_argv(node, node_command(workdir)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
            )
        except FileNotFoundError:
            raise MachineError(
                "ssh is not on this machine.", fix="apt-get install openssh-client"
            ) from None

    def ask(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer, with the key `value` or `error`; empty when ssh ended. May never return."""
        request = json.dumps({"command": command, "arguments": arguments})
        assert self._process.stdin and self._process.stdout, "opened as pipes"
        with suppress(OSError):  # ssh has ended; then there is no line to read
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            with suppress(ValueError):  # a banner of the shell
                answer = json.loads(line)
                if isinstance(answer, dict) and MARK in answer:
                    return answer
        return {}

    def why_it_ended(self) -> Finding:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace")
        return why_ssh_ended(text, self._process.returncode, self.node)

    def end_input(self) -> None:
        """The process on the node then removes its file and ends."""
        assert self._process.stdin, "opened as a pipe"
        with suppress(OSError):
            self._process.stdin.close()

    def close(self) -> None:
        """End the node's process; kill ssh after a moment."""
        self.end_input()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


def node_command(workdir: str) -> str:
    """Shell text for the node, as in `wikillm launch hostfile`."""
    folder = shlex.quote(workdir)
    return f'cd {folder} && PATH="$PWD/.venv/bin:$PATH" && exec python -m wikillm.doctor.node'


def why_ssh_ended(text: str, code: int | None, node: str) -> Finding:
    """What an error of ssh, the shell or Python means, before the node could answer."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for words, (why, fix) in _REASONS.items():
        found = [line for line in lines if words in line.lower()]
        if found:
            # The last line of a traceback is the error.
            line = lines[-1] if words == "traceback" else found[0]
            return fail(line, why, fix.format(node=node))
    last = lines[-1] if lines else f"ssh ended with {code}, without a message"
    return fail(last, "nothing is known about this node", f"ssh {node}")
