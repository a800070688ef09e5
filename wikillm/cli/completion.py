"""`wikillm completion bash|zsh`: a script with which the shell completes commands and flags."""

from __future__ import annotations

import argparse
import importlib

EPILOG = """
bash:  wikillm completion bash > ~/.local/share/bash-completion/completions/wikillm
zsh:   wikillm completion zsh > ~/.zfunc/_wikillm     (with ~/.zfunc in fpath, before compinit)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads the script")


def run(args: argparse.Namespace) -> int:
    import shtab

    from wikillm.cli.main import COMMANDS

    parser = argparse.ArgumentParser(prog="wikillm")
    commands = parser.add_subparsers(dest="command")
    for name, about in COMMANDS.items():
        module = importlib.import_module(f"wikillm.cli.{name}")
        module.configure(commands.add_parser(name, help=about, description=about))
    print(shtab.complete(parser, args.shell))
    return 0
