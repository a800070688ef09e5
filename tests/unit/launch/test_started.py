"""What a launch on several nodes starts, and how it ends what it has started."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from harness.stand_ins import StandIns

from wikillm.launch.description import Launch
from wikillm.launch.targets import render

LAUNCHING = """
    import os, sys
    from wikillm.launch.description import Step
    from wikillm.launch.targets import _run_together
    # os.write: the signal may come while the first line is being printed.
    node = "import os, signal, time\\n"
    node += "signal.signal(15, lambda *_: (os.write(1, b'closed' + b'\\\\n'), os._exit(0)))\\n"
    node += "os.write(1, b'connected' + b'\\\\n'); time.sleep(60)"
    step = Step((sys.executable, "-c", node), background=True, node="node1")
    _run_together((step,), dict(os.environ))
"""


def test_a_killed_launch_closes_its_connections() -> None:
    """In place of ssh: when ssh ends, the terminal on the node closes, and the ranks save."""
    launch = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LAUNCHING)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert launch.stdout is not None and launch.stdout.readline() == "connected\n"
        launch.send_signal(signal.SIGKILL)
        assert launch.stdout.readline() == "closed\n"
    finally:
        launch.kill()
        launch.wait()


def test_a_node_that_does_not_see_the_hostfile_starts_nothing(tmp_path: Path) -> None:
    """DeepSpeed would take it for a launch on this node alone."""
    tools = StandIns(tmp_path / "bin", "ssh", "deepspeed")
    (tmp_path / "train.py").touch()
    hosts = tmp_path / "it's here"
    hosts.write_text("node1 slots=2\nnode2 slots=1\n")
    text = render("hostfile", Launch("demo", (), "", workdir=str(tmp_path), hostfile=hosts)).text
    assert tools.bash(text, cwd=tmp_path).returncode == 0 and len(tools.calls()) == 2
    hosts.unlink()
    done = tools.bash(text, cwd=tmp_path)
    assert done.returncode == 3 and f"node1 has no {hosts}" in done.stdout
    assert len(tools.calls()) == 2
