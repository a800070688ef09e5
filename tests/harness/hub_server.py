"""A loopback server with the parts of both hubs' APIs that a push of a model needs.

Hugging Face: create, preupload, LFS batch, PUT, commit. ModelScope: the same of /api/v1. It keeps
what was sent, and can refuse a request with a status.
"""

from __future__ import annotations

import base64
import json
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harness.loopback import Handler, serving


@dataclass
class HubServer:
    """`files`: of the last commit of each repository; `refuse`: path's start -> status."""

    token: str
    url: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class _Handler(Handler):
    state: HubServer

    def _do(self) -> None:
        body = self.body()
        path = urlsplit(self.path).path
        self.state.log.append(f"{self.command} {path}")
        for start, status in self.state.refuse.items():
            if path.startswith(start):
                self.send_json({"error": "refused", "Message": "refused"}, status)
                return
        if path.startswith("/blob/"):  # a signed address
            self.state.blobs[path.removeprefix("/blob/")] = body
            self.send_json({})
        elif not self.headers.get("Authorization", "").endswith(self.state.token):
            self.send_json({"error": "Invalid token", "Message": "Invalid token"}, 401)
        elif path.startswith("/api/v1/"):
            self._modelscope(path.removeprefix("/api/v1/"), json.loads(body))
        else:
            self._hf(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = _do

    def _hf(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in self.state.repositories:
                url = f"{self.state.url}/{name}"
                self.send_json({"error": "You already created this model repo", "url": url}, 409)
                return
            self.state.repositories[name] = wanted
            self.send_json({"url": f"{self.state.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [
                {"path": one["path"], "shouldIgnore": False, "oid": None}
                | {"uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]
            self.send_json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.send_json({"transfer": "basic", "objects": self._uploads(json.loads(body))})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = self.state.files.setdefault(found[1], {})
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.state.blobs[value["oid"]]
            commit = f"{self.state.url}/{found[1]}/commit/{'0' * 40}"
            self.send_json({"commitUrl": commit, "commitOid": "0" * 40})
        elif path.startswith("/api/models/"):
            self.send_json({"id": "x/y", "sha": "0" * 40, "siblings": []})
        else:
            self.send_json({"error": "unknown path"}, 404)

    def _uploads(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            one | {"actions": {"upload": {"href": f"{self.state.url}/blob/{one['oid']}"}}}
            for one in wanted["objects"]
        ]

    def _modelscope(self, path: str, wanted: dict[str, Any]) -> None:
        if path == "models":
            name = f"{wanted['Path']}/{wanted['Name']}"
            if name in self.state.repositories:
                text = "该名称已被注册使用，请重新命名"
                self.send_json({"Code": 10010101001, "Message": text, "Success": False}, 400)
                return
            self.state.repositories[name] = wanted
            self.send_json({"Code": 200, "Success": True, "Data": {"Name": wanted["Name"]}})
        elif path.endswith("/info/lfs/objects/batch"):
            self.send_json({"Code": 200, "Data": {"objects": self._uploads(wanted)}})
        elif found := re.fullmatch(r"repos/models/(.+)/commit/master", path):
            files = self.state.files.setdefault(found[1], {})
            for action in wanted["actions"]:
                is_lfs = action["type"] == "lfs"
                blob = self.state.blobs.get(action["sha256"], b"") if is_lfs else b""
                files[action["path"]] = blob if is_lfs else base64.b64decode(action["content"])
            self.send_json({"Code": 200, "Success": True, "Data": {"oid": "0" * 40}})
        else:
            self.send_json({"Code": 404, "Message": "unknown path"}, 404)


def serve_hub(token: str) -> AbstractContextManager[HubServer]:
    return serving(_Handler, HubServer(token))
