"""Foreign connections to the coordinator do not disturb a run, and do not learn its secret."""

from __future__ import annotations

import json
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path

from harness.ports import take_port
from harness.programs import train_with_options
from harness.ranks import run_ranks
from harness.tiny_run import Words

ATTACKS = (
    b"[" * 200_000 + b"\n",
    b'{"nonce": Infinity}\n',
    b'{"nonce": "' + b"0" * 32 + b'"}\n' + b"0" * 64 + b' {"end": 5, "reason": "believe me"}\n',
    b'{"hello": 1, "job": "x", "host": "\\u001b[2J", "address": "", "facts": {}}\n',
    b"",
)


def test_a_run_continues_whatever_foreign_peers_send_to_its_coordinator(
    words: Words, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    port = take_port()
    over = threading.Event()
    answered: list[bytes] = []

    def attack() -> None:
        number = 0
        while not over.is_set():
            number += 1
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", port + 1), timeout=1) as sock,
            ):
                sock.sendall(ATTACKS[number % len(ATTACKS)])
                sock.shutdown(socket.SHUT_WR)
                answered.append(sock.recv(65536))
            over.wait(0.05)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        line = words(run, "train.supervise=on", "train.max_steps=4", "train.rendezvous_seconds=100")
        results = run_ranks(train_with_options, 2, line, {}, MASTER_PORT=str(port))
    finally:
        over.set()
        attacker.join()
    assert [result["code"] for result in results] == [0, 0], [
        result["message"] for result in results
    ]
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert len(answered) > len(ATTACKS), "the foreign peers reached the coordinator"
    assert all(
        json.loads(line).keys() == {"nonce"} for said in answered for line in said.splitlines()
    )
    secret = run / ".secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    told = secret.read_text().strip()
    for path in run.rglob("*"):
        if path.is_file() and path != secret:
            assert told.encode() not in path.read_bytes(), path
