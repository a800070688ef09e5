"""`wikillm launch swanlab`: check the manifest, list and write the archive, submit it, and show
the state of tasks and data.

Only --submit, `task ...` and `data ...` contact the service. SwanLab's last client for the service
is of 2024-12-23 and was removed in SwanLab 0.4.3 (2025-01-17). Whether the service still responds
is unknown; this module was never run against it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_atomic
from wikillm.core.units import format_size
from wikillm.launch.swanlab_manifest import FILE_NAME, TEMPLATE, SwanLabManifest, read_manifest
from wikillm.launch.swanlab_pack import Packing, plan_packing, write_zip

_ONE_PART = 2**20


def run_swanlab(args: argparse.Namespace) -> int:
    """Run one action: --init, --print, --zip, --submit, `task ...` or `data ...`. --print and --zip
    may be combined."""
    if args.rest[:1] in (["task"], ["data"]):
        from wikillm.cli.launch_swanlab_service import run_service

        return run_service(args)
    _refuse_what_a_job_cannot_have(args)
    path = args.file or Path(FILE_NAME)
    if args.init:
        if path.exists():
            fix = "edit it, or name another file: -f FILE"
            raise ConfigError("There is a manifest already.", got=str(path), fix=fix)
        write_atomic(path, TEMPLATE)
        print(f"wrote {path}; next: wikillm launch swanlab --print")
        return 0
    if not (args.show or args.zip or args.submit):
        fix = "wikillm launch swanlab --print\nor --zip job.zip, --submit"
        raise ConfigError("`wikillm launch swanlab` needs --print, --zip or --submit.", fix=fix)
    manifest = read_manifest(path)
    packing = plan_packing(manifest, without=args.zip)
    if args.show:
        print("\n".join(_lines(manifest, packing)))
    for warning in packing.warnings:
        print(f"warning: {warning}")
    if args.zip:
        size = write_zip(manifest, packing, args.zip)
        parts = "one part" if size <= _ONE_PART else "several parts, because it exceeds 1 MiB"
        files = f"{len(packing.files)} files, {format_size(size)}"
        print(f"wrote {args.zip}: {files} (an upload in {parts})")
    if args.submit:
        from wikillm.cli.launch_swanlab_service import submit_folder

        return submit_folder(args, manifest, packing)
    return 0


def _refuse_what_a_job_cannot_have(args: argparse.Namespace) -> None:
    if args.go:
        fix = "wikillm launch swanlab --submit"
        raise ConfigError("A SwanLab Launch job is submitted.", got="--go", fix=fix)
    for flag in ("follow", "to"):
        if getattr(args, flag) and not args.submit:
            fix = "wikillm launch swanlab task follow ID, task fetch ID"
            raise ConfigError(f"--{flag} goes with --submit.", fix=fix)
    if args.to and not args.follow:
        raise ConfigError("--to needs a task that has ended.", fix="add --follow")
    words = [*args.rest, *filter(None, (args.config, args.deepspeed))]
    if words:
        raise ConfigError(
            "A SwanLab Launch job takes no arguments: it runs `python ENTRY`.",
            got=" ".join(words),
            fix="name your own file as spec.entry: "
            "from wikillm.cli.main import main; main(['train', 'train.max_steps=100'])",
        )


def _lines(manifest: SwanLabManifest, packing: Packing) -> list[str]:
    machine = manifest.combo or "the default machine"
    facts = [
        f"name       {manifest.name}{f': {manifest.desc}' if manifest.desc else ''}",
        f"runs       python {manifest.entry} (Python {manifest.python}) on {machine}, 4 h at most",
        f"folder     {manifest.folder.absolute()}",
    ]
    width = max(len(format_size(file.size)) for file in packing.files)
    listed = [f"  {format_size(file.size):>{width}}  {file.name}" for file in packing.files]
    total = f"{len(packing.files)} files, {format_size(packing.size)} before compression"
    return [*facts, *listed, total]
