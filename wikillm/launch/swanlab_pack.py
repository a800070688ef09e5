"""Lists and zips the files of the manifest's folder for a SwanLab Launch job.

The rules are those of the old client, not of gitignore. In every folder d, the matches of d/PATTERN
are left out: `data` matches every `data` at any depth, `a/b` every b in an a, and `**` is one
level. Names with a leading dot and empty folders are never packed. The manifest is always packed.
Symbolic links, whose target may be anywhere, and files that are named like keys or passwords
(`remote/private_files.py`) are left out with a warning.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wikillm.core.errors import ConfigError
from wikillm.core.files import STAGING_SUFFIX, rename_durably
from wikillm.core.units import format_size
from wikillm.launch.swanlab_manifest import SwanLabManifest
from wikillm.observe.redact import environment_secrets, holds_token
from wikillm.remote.private_files import is_private

BIG_FILE = 10 * 2**20
MAX_SCANNED = 2 * 2**20
_SECRET_FILES = ("*.key", "*credential*", "*secret*", "*.env")
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_EXPECTED_DOTS = frozenset(
    {".git", ".venv", ".gitignore", ".gitattributes", ".github", ".ci", ".hypothesis", ".cache"}
)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """`name` is relative to the folder, with slashes; `size` in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Packing:
    """The files to pack, sorted by name, and warnings to show before they leave the machine."""

    files: tuple[PackedFile, ...]
    warnings: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def plan_packing(manifest: SwanLabManifest, *, without: Path | None = None) -> Packing:
    """List the files of the manifest's folder. `without`: the archive that is about to be written.

    Raises ConfigError if the entry file is left out.
    """
    folder = manifest.folder
    walk = _Walk(manifest)
    files = tuple(
        PackedFile(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(
            walk.files(folder, {}), key=lambda path: path.relative_to(folder).as_posix()
        )
        if without is None or path.absolute() != without.absolute()
    )
    names = {file.name for file in files}
    if os.path.normpath(manifest.entry) not in names:
        what = "spec.exclude leaves the entry file out."
        raise ConfigError(what, got=manifest.entry, fix="remove the pattern that matches it")
    # Warn about secrets, large files and everything else that a user may not expect in the job.
    warnings = [*walk.warnings, *_secret_warnings(folder, files)]
    warnings += [f"{f.name} is large: {format_size(f.size)}" for f in files if f.size > BIG_FILE]
    dropped = sorted(name for name in walk.dots - _EXPECTED_DOTS if not name.endswith("_cache"))
    if dropped:
        shown = ", ".join(dropped[:8]) + (" ..." if dropped[8:] else "")
        warnings.append(f"never packed, since their names start with a dot: {shown}")
    if "requirements.txt" not in names:
        warnings.append("there is no requirements.txt: the job installs nothing")
    if "wikillm/__init__.py" in names and manifest.python != "3.11":
        warnings.append(f'WikiLLM needs Python 3.11, spec.python is "{manifest.python}"')
    if manifest.volume_id is None:
        warnings.append("no data volume: the job sees only what is packed (spec.volumes)")
    else:
        where = f"/data/{manifest.volume or 'NAME'}/"
        what = f"the volume appears in the job as {where}"
        warnings.append(f"{what}: data.path must find the text there")
    return Packing(files, tuple(warnings))


def write_zip(manifest: SwanLabManifest, packing: Packing, target: Path) -> int:
    """Write the archive, complete or not at all. Returns its size in bytes.

    The same files give the same archive. Raises ConfigError if it cannot be written.
    """
    staged = target.with_name(f".{target.name}.{os.getpid()}{STAGING_SUFFIX}")
    try:
        with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in packing.files:
                path = manifest.folder / file.name
                info = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
                mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
                info.external_attr = (stat.S_IFREG | mode) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, path.read_bytes())
        rename_durably(staged, target)
    except OSError as error:
        got = f"{target}: {error.strerror}"
        raise ConfigError("The archive cannot be written.", got=got, fix="--zip FILE") from None
    finally:
        staged.unlink(missing_ok=True)
    return target.stat().st_size


@dataclass(slots=True)
class _Walk:
    """Finds the files to pack, and collects warnings and the names that start with a dot."""

    manifest: SwanLabManifest
    warnings: list[str] = field(default_factory=list)
    dots: set[str] = field(default_factory=set)

    def files(self, folder: Path, inherited: dict[str, str]) -> Iterator[Path]:
        """The files to pack below `folder`. `inherited`: excluded paths and their patterns."""
        top = self.manifest.folder
        excluded = inherited | {
            str(folder / os.path.normpath(match)): pattern
            for pattern in self.manifest.exclude
            for match in glob.glob(pattern, root_dir=folder)
        }
        # The first rule that applies to a name decides. A file that no rule leaves out is packed.
        for path in sorted(folder.iterdir()):
            name = path.relative_to(top).as_posix()
            if path.name.startswith("."):
                self.dots.add(path.name)
            elif is_private(path.name) and not path.is_dir():
                self.warnings.append(f"{name} looks like a secret by its name: never packed")
            elif (pattern := excluded.get(str(path))) is not None:
                is_code = path.suffix == ".py" or (path / "__init__.py").exists()
                if is_code and folder != top:
                    what = f"the pattern {pattern!r} also leaves out {name}"
                    self.warnings.append(f"{what}, which is code")
            elif path.is_symlink():
                self.warnings.append(f"a symbolic link is not packed: {name}")
            elif path.is_dir():
                yield from self.files(path, excluded)
            elif path.is_file():
                yield path
            else:
                self.warnings.append(f"neither a file nor a folder, not packed: {name}")


def _secret_warnings(folder: Path, files: Sequence[PackedFile]) -> Iterator[str]:
    """Warnings about files that are named like secrets or contain secrets."""
    secrets = [secret.encode() for secret in environment_secrets()]
    for file in files:
        base = file.name.rpartition("/")[2].lower()
        is_named_so = any(fnmatch.fnmatchcase(base, pattern) for pattern in _SECRET_FILES)
        if is_named_so and not base.endswith(".py"):
            yield f"{file.name} looks like a secret by its name"
            continue
        if file.size > MAX_SCANNED:
            continue
        content = (folder / file.name).read_bytes()
        if any(secret in content for secret in secrets):
            yield f"{file.name} holds the value of a secret environment variable"
        elif _PRIVATE_KEY.search(content):
            yield f"{file.name} holds a private key"
        elif holds_token(content.decode("utf-8", "ignore")):
            yield f"{file.name} holds what looks like an access token"
