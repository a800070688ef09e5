"""The doctor on a node: `python -m wikillm.doctor.node NAME` answers requests, one JSON a line.

It is started over ssh, ends when its standard input ends, and then removes its file. Its listening
sockets end with the process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wikillm.core.world import free_port
from wikillm.doctor.disk import existing_folder
from wikillm.doctor.examine import check_node
from wikillm.doctor.needs import Needs
from wikillm.doctor.network import outer_card
from wikillm.doctor.nodes import values_to_compare
from wikillm.doctor.probe import in_time

MARK = "wikillm-doctor"
CONNECT_SECONDS = 4.0
FOLDER_SECONDS = 5.0
ALL_REDUCE_SECONDS = 18.0
MEASURED_SECONDS = 1.0


class NodeServer:
    """Answers the requests `examine`, `meet` and `reduce`. `name`: this node in the hostfile."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._listeners: list[socket.socket] = []
        self._written: list[Path] = []

    def examine(
        self,
        needs: dict[str, Any],
        slots: dict[str, int],
        token: str,
        environment: dict[str, str],
    ) -> dict[str, Any]:
        """Check this node. With several nodes, also write a file and listen for the other nodes.

        Args:
            slots: processes of each node.
            token: part of the names of this examination's files.
            environment: the variables that a run would get here.
        """
        os.environ.update(environment)
        self.needs = replace(Needs(**needs), slots=slots[self.name])
        self.token = token
        answer: dict[str, Any] = {
            "findings": [asdict(finding) for finding in check_node(self.needs, self.name)],
            "facts": values_to_compare(self.needs),
        }
        if len(slots) > 1:
            late = f"no answer within {FOLDER_SECONDS:.0f} s"
            answer["write_error"] = in_time({"": self._write}, FOLDER_SECONDS).get("", late)
            answer["ports"] = [*self._listen(self.needs.master_port), *self._listen(0)]
            answer["free_port"] = free_port()
        return answer

    def meet(self, written: list[str], peers: dict[str, tuple[str, list[int]]]) -> dict[str, Any]:
        """Look for the files of the nodes `written`; connect to `peers`: name -> address, ports."""
        look = in_time({"": lambda: self._look(written)}, FOLDER_SECONDS + 1)
        others = {name: target for name, target in peers.items() if name != self.name}
        with ThreadPoolExecutor(64) as pool:
            errors = list(pool.map(lambda target: _connect(*target), others.values()))
        return {
            "missing": look.get("", written),
            "errors": dict(zip(others, errors, strict=True)),
        }

    def reduce(self, names: list[str], address: str, port: int) -> dict[str, Any]:
        """Run this node's rank of the all-reduce. Returns its result on rank 0, or an `error`."""
        rank = names.index(self.name)
        environment = {
            "GLOO_SOCKET_IFNAME": outer_card(self.needs) or "",
            **os.environ,
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(len(names)),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        try:
            done = subprocess.run(
                [sys.executable, "-m", "wikillm.measure.collective", str(MEASURED_SECONDS)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=ALL_REDUCE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no result within {ALL_REDUCE_SECONDS:.0f} s"}
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return {"error": lines[-1].strip() if lines else f"ended with {done.returncode}"}
        return dict(json.loads(done.stdout.splitlines()[-1])) if rank == 0 else {}

    def remove_file(self) -> None:
        for path in self._written:
            path.unlink(missing_ok=True)

    def _file_of(self, name: str) -> Path:
        return existing_folder(self.needs.run_dir) / f".wikillm-doctor-{self.token}-{name}"

    def _write(self) -> str:
        """Write this node's file beside the run directory. Returns "" or why that failed."""
        path = self._file_of(self.name)
        try:
            path.touch()
        except OSError as error:
            return f"{path.parent}: {error.strerror}"
        self._written.append(path)
        return ""

    def _look(self, names: list[str]) -> list[str]:
        """The nodes whose files cannot be read here; waits FOLDER_SECONDS for them."""
        end = time.monotonic() + FOLDER_SECONDS
        while True:
            missing = [name for name in names if not os.access(self._file_of(name), os.R_OK)]
            if not missing or time.monotonic() > end:
                return missing
            time.sleep(0.3)

    def _listen(self, port: int) -> list[int]:
        """[the port that now accepts connections], or [] if it is in use. 0: take a free port."""
        is_dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if is_dual else socket.AF_INET
        with suppress(OSError):
            # The kernel completes connections up to the backlog, without any accept().
            server = socket.create_server(
                ("", port), family=family, dualstack_ipv6=is_dual, backlog=4096
            )
            self._listeners.append(server)
            return [int(server.getsockname()[1])]
        return []


def _connect(address: str, ports: list[int]) -> str:
    """The first error of connections to `ports`; "" if all of them are open."""
    for port in ports:
        try:
            socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            is_late = isinstance(error, TimeoutError)
            reason = "no answer" if is_late else error.strerror or str(error)
            return f"port {port} at {address}: {reason}"
    return ""


def main() -> None:
    """Answer until standard input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # ssh merges both outputs, which must have nothing but answers
    os.dup2(nowhere, 2)
    server = NodeServer(sys.argv[1])
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            command = asked["command"]
            answer: dict[str, Any]
            try:
                answer = {"value": getattr(server, command)(**asked["arguments"])}
            except Exception as error:  # the examining machine reports it
                answer = {"error": f"{type(error).__name__}: {error}"}
            channel.write(json.dumps({MARK: command, **answer}) + "\n")
            channel.flush()
    finally:
        server.remove_file()
    os._exit(0)  # threads that hang in a dead mount would keep the process


if __name__ == "__main__":
    main()
