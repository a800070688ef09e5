"""A loopback server with the parts of the Hugging Face and ModelScope APIs that data sets need.

Hugging Face: revision, tree and resolve of one repository at one commit. ModelScope: tree and file.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from harness.loopback import Handler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class DatasetServer:
    """Serves `files` (path -> content) as the data set `repo`.

    `cut`: the next download of a file ends after this many bytes.
    """

    repo: str
    files: dict[str, bytes]
    url: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class _Handler(Handler):
    state: DatasetServer

    def _do(self) -> None:
        self.body()
        address = urlsplit(self.path)
        path = unquote(address.path)
        repo = self.state.repo
        self.state.log.append(f"{self.command} {path}")
        if re.fullmatch(rf"/api/datasets/{repo}(/revision/(main|{COMMIT}))?", path):
            names = [{"rfilename": name} for name in self.state.files]
            self.send_json({"id": repo, "sha": COMMIT, "siblings": names})
        elif path.startswith(f"/api/datasets/{repo}/tree/{COMMIT}"):
            self._tree(path.split(COMMIT, 1)[1].strip("/"))
        elif found := re.fullmatch(rf"/datasets/{repo}/resolve/(main|{COMMIT})/(.+)", path):
            self._file(found[2])
        elif path == f"/api/v1/datasets/{repo}/repo/tree":
            listed = [self._blob(name) for name in self.state.files]
            self.send_json({"Code": 200, "Success": True, "Data": {"Files": listed}})
        elif path == f"/api/v1/datasets/{repo}/repo":
            self._file(parse_qs(address.query)["FilePath"][0])
        else:
            self._missing("RepoNotFound")

    do_GET = do_HEAD = do_POST = _do

    def _blob(self, name: str) -> dict[str, object]:
        content = self.state.files[name]
        digest = hashlib.sha256(content).hexdigest()
        facts = {"Type": "blob", "Size": len(content), "Sha256": digest}
        return {"Path": name, "Name": name, **facts}

    def _tree(self, below: str) -> None:
        found: dict[str, dict[str, object]] = {}
        for file, content in self.state.files.items():
            if below and not file.startswith(f"{below}/"):
                continue
            rest = file[len(below) :].lstrip("/")
            if "/" in rest:
                name = f"{below}/{rest.split('/')[0]}".lstrip("/")
                found[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            else:
                oid = hashlib.sha1(content).hexdigest()
                found[file] = {"type": "file", "path": file, "oid": oid, "size": len(content)}
        self.send_json(list(found.values())) if found else self._missing("EntryNotFound")

    def _file(self, name: str) -> None:
        content = self.state.files.get(name)
        if content is None:
            self._missing("EntryNotFound")
            return
        first = 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(wanted[1])
        last = min(int(wanted[2]) if wanted and wanted[2] else len(content) - 1, len(content) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command != "GET":
            return
        body = content[first : last + 1]
        if (cut := self.state.cut.pop(name, None)) is not None:
            body = body[:cut]
            self.close_connection = True
        self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self.send(404, X_Error_Code=code)


def serve_datasets(repo: str, files: dict[str, bytes]) -> AbstractContextManager[DatasetServer]:
    return serving(_Handler, DatasetServer(repo, files))
