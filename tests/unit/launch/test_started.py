"""When `wikillm launch --go` is killed, the processes it has started end too."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

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
