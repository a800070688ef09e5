"""Which errors say that another rank is gone, and are worth a wait until it is named."""

from __future__ import annotations

import errno

import pytest

from wikillm.core.errors import MachineError
from wikillm.supervise.lost_rank import is_about_a_connection

GLOO = "[gloo/transport/tcp/pair.cc:537] "


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            GLOO
            + "Read error [127.0.0.1]:5038: Connection reset by peer. Check the logs of the remote worker."
        ),
        RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:21930"),
        RuntimeError("[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1000 ms"),
        RuntimeError(
            "NCCL error in: ProcessGroupNCCL.cpp:1275, remote process exited or there was a network error"
        ),
        RuntimeError("wait timeout after 300000ms, keys: /default_pg/0//cuda//0"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
)
def test_a_lost_peer_is_waited_for(error: Exception) -> None:
    assert is_about_a_connection(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EROFS, "Read-only file system", "/runs/a/logs/rank_1.log"),
        OSError(errno.EIO, "Input/output error", "/data/store/shard_7.bin"),
        RuntimeError(
            "The size of tensor a (5) must match the size of tensor b (6) at non-singleton dimension 1"
        ),
        RuntimeError(
            "The server socket has failed to listen on any local network address. EADDRINUSE"
        ),
        RuntimeError("expected a tensor of rank 2"),
        MachineError("The connection to another rank was lost."),
    ],
)
def test_an_error_of_this_rank_is_not(error: Exception) -> None:
    """The word rank in a file's name is none, nor is a tensor's rank."""
    assert not is_about_a_connection(error)
