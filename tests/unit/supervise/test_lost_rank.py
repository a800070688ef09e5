"""Which errors mean a lost rank, whose reason the other ranks then wait for."""

from __future__ import annotations

import errno

import pytest

from wikillm.core.errors import MachineError
from wikillm.supervise.lost_rank import is_about_a_connection

GLOO = "[gloo/transport/tcp/pair.cc:537] "


@pytest.mark.parametrize(
    "text",
    [
        f"{GLOO}Read error [127.0.0.1]:5038: Connection reset by peer. Check the logs.",
        f"{GLOO}Connection closed by peer [127.0.0.1]:21930",
        "[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1000 ms",
        "NCCL error in: ProcessGroupNCCL.cpp:1275, remote process exited or network error",
        "wait timeout after 300000ms, keys: /default_pg/0//cuda//0",
    ],
)
def test_a_lost_peer_is_recognised(text: str) -> None:
    assert is_about_a_connection(RuntimeError(text))
    assert is_about_a_connection(ConnectionResetError(errno.ECONNRESET, "reset by peer"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, "Read-only file system", "/runs/a/logs/rank_1.log"),
        OSError(errno.EIO, "Input/output error", "/data/store/shard_7.bin"),
        RuntimeError("The size of tensor a (5) must match the size of tensor b (6)"),
        RuntimeError("The server socket has failed to listen. EADDRINUSE"),
        RuntimeError("expected a tensor of rank 2"),
        MachineError("The connection to another rank was lost."),
    ],
)
def test_an_error_of_this_rank_is_not_a_lost_peer(error: Exception) -> None:
    """A file name with "rank" does not mean a lost peer, nor does the rank of a tensor."""
    assert not is_about_a_connection(error)
