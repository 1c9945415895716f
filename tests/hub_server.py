"""A small Hugging Face Hub over real HTTP, to which the real client talks: reading data sets and models.

Every request is kept in `requests`, so that a test can tell what was read and when.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """Commits and what names them; `gated` if the Hub gives it only to whom its owner let in."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash means."""
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None


class HubServer:
    """Serves repositories from memory on a free port of this machine, as a context manager."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, Iterator[int]] = {}
        """`REPOSITORY/FILE` -> with which status its next downloads fail."""
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more: from now on there is nobody at this address."""
        self._server.shutdown()
        self._server.server_close()

    def add_dataset(self, name: str, files: dict[str, bytes]) -> str:
        """Make a data set repository; returns its revision."""
        return self.add_model(f"datasets/{name}", files)

    def add_model(self, name: str, files: dict[str, bytes], *names: str, gated: bool = False) -> str:
        """Make a model repository, or a further commit to `main` in one; returns its revision.

        `names` are tags (or branches) of the commit.
        """
        repository = self.repositories.setdefault(name, Repository())
        repository.gated = gated
        revision = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repository.commits[revision] = files
        repository.names |= dict.fromkeys(("main", *names), revision)
        return revision

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment of a process whose client libraries talk to this server, with a cache of its own."""
        return {**os.environ, "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.server_hub.requests.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif match := re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(?:/([a-z-]+)/([^/]+)(?:/(.*))?)?", path):
            self._api(match[1], match[2], match[3] or "main", match[4] or "", body, query)
        else:
            self._fail(404, "EntryNotFound")

    def _resolve(self, name: str, revision: str, file: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return None
        commit, files = found
        if file not in files:
            return self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        fault = next(self.server_hub.faults.get(f"{name}/{file}", iter(())), None)
        if fault is not None:
            return self._fail(fault, "Fault")
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._reply(206, content[first : last + 1], headers)
        return self._reply(200, content, headers)

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit asked for and its files; None if the answer has been that there is none."""
        repository = self.server_hub.repositories.get(name)
        commit = repository.find(revision) if repository else None
        if repository is None:
            self._fail(401, "RepoNotFound")
        elif repository.gated:
            self._fail(403, "GatedRepo")
        elif commit is None:
            self._fail(404, "RevisionNotFound")
        else:
            return commit, repository.commits[commit]
        return None

    def _api(
        self,
        name: str,
        kind: str | None,
        revision: str,
        folder: str,
        body: bytes,
        query: dict[str, list[str]],
    ) -> None:
        found = self._find(name, revision)
        if found is None:
            return None
        commit, files = found
        entries: list[dict[str, Any]] = [
            {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
            for path, content in sorted(files.items())
        ]
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
        entries += [
            {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)
        ]
        if kind == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
            inside = [
                entry for entry in entries if PurePosixPath(folder) in PurePosixPath(entry["path"]).parents
            ]
            if folder and folder not in folders:
                return self._fail(404, "EntryNotFound")
            if not recursive:
                inside = [e for e in inside if PurePosixPath(e["path"]).parent == PurePosixPath(folder)]
            return self._json(inside)
        if kind == "paths-info":
            is_json = "json" in self.headers.get("Content-Type", "")
            asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode())["paths"]
            return self._json([entry for entry in entries if entry["path"] in asked])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._json(
            {"_id": "0", "id": name.removeprefix("datasets/"), "sha": commit, "private": False, "gated": False,
             "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        )  # fmt: skip

    def _json(self, value: object) -> None:
        self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._reply(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
