"""Turn the settings `data.*` into `Filters`, a picklable value that is part of the fingerprint.

A filter that is off adds nothing to the fingerprint, so a new filter does not change the
fingerprints of stores that do not use it. The files of a filter (protected terms, evaluation files)
are pinned by sha256, which is checked again when a worker reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wikillm.config.schema_data import DataSection
from wikillm.core.errors import ConfigError, DataError
from wikillm.core.files import sha256_file
from wikillm.data.fetch.remote import scheme_of, without_secrets
from wikillm.data.sources.locate import locate

QUALITY_VERSION = 1
"""Raise it with every change of a quality rule: it is part of the fingerprint."""
OVERLAP_VERSION = 2
"""Raise it with every change of the comparison with evaluation files."""


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file that the bytes of the store depend on, with its sha256."""

    path: str
    sha256: str

    @classmethod
    def pin(cls, path: Path) -> PinnedFile:
        return cls(str(path), sha256_file(path))

    def check(self) -> None:
        """Raises DataError when the content has changed since the file was pinned."""
        if sha256_file(Path(self.path)) != self.sha256:
            raise DataError(
                "A file changed while the store was being built.",
                got=self.path,
                fix="start again, which uses its new content",
            )

    def read(self) -> bytes:
        """The bytes of the file. Raises DataError when they have changed since it was pinned."""
        self.check()
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters of a store in the order in which they are applied to each clean text.

    Duplicates are dropped by the drop-list (`drop_list.py`), not here.
    """

    convert: str = "none"
    converter: str = ""  # library and version
    protected: PinnedFile | None = None
    quality: str = "none"
    evaluation: tuple[PinnedFile, ...] = ()
    overlap_units: int = 13
    overlap_share: float = 0.5

    @property
    def is_idle(self) -> bool:
        return self.convert == "none" and self.quality == "none" and not self.evaluation

    def facts(self) -> dict[str, Any]:
        """The settings that the bytes of the store depend on; empty when no filter is on."""
        facts: dict[str, Any] = {}
        if self.convert != "none":
            protected = self.protected.sha256 if self.protected else None
            facts["data.convert"] = {
                "to": self.convert,
                "by": self.converter,
                "protected_terms": protected,
            }
        if self.quality != "none":
            facts["data.quality"] = {"rules": self.quality, "version": QUALITY_VERSION}
        if self.evaluation:
            facts["data.decontaminate"] = {
                "files": [file.sha256 for file in self.evaluation],
                "units": self.overlap_units,
                "share": self.overlap_share,
                "version": OVERLAP_VERSION,
            }
        return facts


def plan_filters(cfg: DataSection) -> Filters:
    """The filters that the settings turn on, with their files pinned.

    Raises ConfigError for a missing package, DataError for a missing file.
    """
    if cfg.protected_terms is not None and cfg.convert == "none":
        raise ConfigError(
            "data.protected_terms has no effect without data.convert.",
            got=f"data.protected_terms={cfg.protected_terms}",
            fix="data.convert=t2s, or leave data.protected_terms out",
        )
    return Filters(
        convert=cfg.convert,
        converter=_converter() if cfg.convert != "none" else "",
        protected=_protected(cfg.protected_terms) if cfg.protected_terms else None,
        quality=cfg.quality,
        evaluation=_pinned("data.decontaminate", cfg.decontaminate) if cfg.decontaminate else (),
        overlap_units=cfg.decontaminate_units,
        overlap_share=cfg.decontaminate_share,
    )


def _protected(entry: str) -> PinnedFile:
    found = _pinned("data.protected_terms", (entry,))
    if len(found) > 1:
        names = ", ".join(file.path for file in found[:3])
        raise ConfigError(
            "data.protected_terms must be one file.",
            got=f"{entry}: {len(found)} files, {names}" + (" ..." if len(found) > 3 else ""),
            fix="put the terms into one file: cat FILES > terms.txt",
        )
    return found[0]


def _pinned(key: str, entries: Sequence[str]) -> tuple[PinnedFile, ...]:
    """The local files that `key` names, found like those of data.path; errors name `key`."""
    for entry in entries:
        if scheme_of(entry):
            what = f"{key} takes local files only."
            fix = f"download it, and name the local file in {key}"
            raise ConfigError(what, got=without_secrets(entry), fix=fix)
    try:
        return tuple(PinnedFile.pin(path) for path in locate(entries))
    except DataError as error:
        fix = (error.fix or "").replace("data.path", key)
        fix = "name an existing file" if "://" in fix else fix
        raise DataError(error.what.replace("data.path", key), got=error.got, fix=fix) from None


def _converter() -> str:
    try:
        return f"opencc {version('opencc')}"
    except PackageNotFoundError:
        raise ConfigError(
            "data.convert needs OpenCC, which is not installed.",
            got="no module opencc",
            fix="pip install 'wikillm[wiki]', or data.convert=none",
        ) from None


def has_opencc() -> bool:
    """Whether the converter of data.convert is installed."""
    return find_spec("opencc") is not None


def has_minhash() -> bool:
    """Whether the library of data.dedup=minhash is installed."""
    return find_spec("rensa") is not None
