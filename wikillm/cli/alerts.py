"""`wikillm alerts`: send a test message through every channel of a run's alerts."""

from __future__ import annotations

import argparse
import socket
import time

from wikillm.cli.run_config import add_run_config_arguments, resolve_run_config
from wikillm.core.errors import ConfigError, MachineError
from wikillm.supervise.settings import run_folder


def configure(parser: argparse.ArgumentParser) -> None:
    add_run_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from wikillm.observe.alert_channels import deliver

    cfg = resolve_run_config(args).config
    if not cfg.alerts.channels:
        raise ConfigError(
            "The run has no channel for alerts.",
            fix="alerts.slack=VARIABLE (or webhook, dingtalk, lark, wecom, discord, email_to)",
        )
    message = {
        "event": "test", "run": cfg.run.name, "run_dir": str(run_folder(cfg.run).absolute()),
        "host": socket.gethostname(), "step": None, "exit_code": None, "note": "",
        "reason": f"events that send a message: {', '.join(cfg.alerts.events)}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    outcome = deliver(cfg.alerts, message)
    for channel, why in outcome.items():
        print(f"{channel:<10} {'sent' if why is None else f'not sent: {why}'}")
    if any(outcome.values()):
        failed = ", ".join(channel for channel, why in outcome.items() if why is not None)
        raise MachineError(
            f"The test message did not arrive through {failed}.",
            fix="correct the channel; its error is printed above",
        )
    return 0
