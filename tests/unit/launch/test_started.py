"""What becomes of the processes that `wikillm launch --go` has started, one a node, when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

LAUNCHING = """
    import os, sys
    from wikillm.launch.description import Step
    from wikillm.launch.targets import _run_together
    node = "import signal, time; signal.signal(15, lambda *_: (print('closed', flush=True), exit(0))); "
    node += "print('connected', flush=True); time.sleep(60)"
    _run_together((Step((sys.executable, "-c", node), background=True, node="node1"),), dict(os.environ))
"""


def test_a_killed_launch_closes_its_connections() -> None:
    """Here a process stands for ssh: its end closes the terminal on the node, and the ranks there save."""
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
