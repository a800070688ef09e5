"""`wikillm serve MODEL`: serve the model over OpenAI's API, with a web page to try it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wikillm.cli.arguments import add_device, add_trust, index
from wikillm.cli.generate import export_for_reading, say_loading
from wikillm.core.errors import ConfigError

if TYPE_CHECKING:
    from wikillm.generate.server import Serving

EPILOG = """
examples:
  wikillm serve exports/wiki-zh-120m-500
  wikillm serve runs/wiki-zh-120m --port 0
The server is part of transformers: /v1/completions, /v1/chat/completions (for a model with a chat
template), /v1/responses, /v1/models, /health, and a page at /. It has no password and no
encryption, so it accepts connections from this machine only, unless --host names another address.
Ctrl-C ends it. It needs more packages: pip install 'wikillm[serve]'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    help = "an exported model; or a run directory or a checkpoint, which is exported first"
    add("folder", metavar="MODEL", help=help)
    help = "port to listen on; 0 for any free port (default 8000)"
    add("--port", type=index, default=8000, metavar="N", help=help)
    help = "address to listen on (default 127.0.0.1, reachable from this machine only)"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=help)
    add_device(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    say_loading(args.folder)
    from wikillm.generate.server import check_can_serve, is_loopback

    if args.port > 65_535:
        raise ConfigError("There is no such port.", got=str(args.port), fix="--port 0 to 65535")
    check_can_serve(args.host, args.port)
    if not is_loopback(args.host):
        warning = f"warning: other machines can reach {args.host} without a password"
        print(warning, file=sys.stderr, flush=True)
    # SIGTERM ends the server as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        serving = _start(args)
        template = "has a chat template" if serving.has_template else "a base model: completions"
        print(f"model      {serving.name}  {template}")
        print(f"page       {serving.url}/")
        print(f"client     OpenAI(base_url='{serving.url}/v1', api_key='none')", flush=True)
        try:
            while serving.is_alive():
                time.sleep(0.2)
        finally:
            serving.stop()
    return 0


def _start(args: argparse.Namespace) -> Serving:
    from wikillm.generate.load import is_model_folder
    from wikillm.generate.server import start_server

    folder = Path(args.folder)
    options = {"host": args.host, "port": args.port, "device": args.device}
    if is_model_folder(folder):
        return start_server(folder, folder.resolve().name, **options)
    with tempfile.TemporaryDirectory(prefix="wikillm-") as temporary:
        print(f"exporting  {folder} to a temporary folder", flush=True)
        done, name = export_for_reading(folder, Path(temporary), trust=args.trust_checkpoint)
        return start_server(done, name, **options)
