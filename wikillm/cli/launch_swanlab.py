"""`wikillm launch swanlab`: the offline part of SwanLab Launch. Checks the manifest, lists and writes the archive.

Submitting is not implemented: SwanLab's client lost the commands in 0.4.3 (2025-01-17), no release that has them can be
installed, and whether the service still answers is unknown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from wikillm.core.errors import ConfigError
from wikillm.core.files import write_atomic
from wikillm.core.units import format_size
from wikillm.launch.swanlab_manifest import FILE_NAME, TEMPLATE, Manifest, read_manifest
from wikillm.launch.swanlab_pack import Packing, plan_packing, write_zip

_ONE_PART = 2**20


def run_swanlab(args: argparse.Namespace) -> int:
    """One of --init, --zip and --print (the last two also together)."""
    _refuse_what_a_job_cannot_have(args)
    path = args.file or Path(FILE_NAME)
    if args.init:
        if path.exists():
            raise ConfigError("There is a manifest already.", got=str(path), fix="edit it, or name another: -f FILE")
        write_atomic(path, TEMPLATE)
        print(f"wrote {path}; next: wikillm launch swanlab --print")
        return 0
    if not (args.show or args.zip):
        raise ConfigError("Show the archive or write it?", fix="wikillm launch swanlab --print\nor --zip job.zip")
    manifest = read_manifest(path)
    packing = plan_packing(manifest, without=args.zip)
    if args.show:
        print("\n".join(_lines(manifest, packing)))
    for warning in packing.warnings:
        print(f"warning: {warning}")
    if args.zip:
        size = write_zip(manifest, packing, args.zip)
        parts = "one part" if size <= _ONE_PART else "several parts, being over 1 MiB"
        print(f"wrote {args.zip}: {len(packing.files)} files, {format_size(size)} (an upload in {parts})")
    return 0


def _refuse_what_a_job_cannot_have(args: argparse.Namespace) -> None:
    if args.go or "--submit" in args.rest:
        raise ConfigError(
            "Submitting to SwanLab Launch is not implemented.",
            got="SwanLab's client lost it in 0.4.3 (2025-01-17); whether the service still answers is unknown",
            fix="--zip FILE for the archive\nor run elsewhere: wikillm launch ssh ..., wikillm launch slurm ...",
        )
    words = [*args.rest, *filter(None, (args.config, args.deepspeed))]
    if words:
        raise ConfigError(
            "A SwanLab Launch job takes no arguments: it runs `python ENTRY`.",
            got=" ".join(words),
            fix="name a file of your own as spec.entry: "
            "from wikillm.cli.main import main; main(['train', 'train.max_steps=100'])",
        )


def _lines(manifest: Manifest, packing: Packing) -> list[str]:
    facts = [
        f"name       {manifest.name}{f': {manifest.desc}' if manifest.desc else ''}",
        f"runs       python {manifest.entry} (Python {manifest.python}) on {manifest.combo or 'the default machine'}, 4 h at most",
        f"folder     {manifest.folder.absolute()}",
    ]
    width = max(len(format_size(file.size)) for file in packing.files)
    listed = [f"  {format_size(file.size):>{width}}  {file.name}" for file in packing.files]
    return [*facts, *listed, f"{len(packing.files)} files, {format_size(packing.size)} before compression"]
