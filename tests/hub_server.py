"""A small Hugging Face Hub over real HTTP, to which the real client talks.

It has data sets and models, revisions, tags, private and gated repositories, tokens, uploads (small files in
the commit, large ones by LFS), and faults on demand. Every request is kept in `requests`, so that a test can
tell what was read and when.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_aVerySecretWriter", "hf_aVerySecretReader"
"""Tokens: the first may write to what belongs to `user`, the second may write nowhere."""
Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits and what names them; `gated` if the Hub gives it only to whom its owner let in."""

    commits: dict[str, Files] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool | str = False
    private: bool = False
    messages: list[str] = field(default_factory=list)

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a hash means."""
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, files: Files, message: str) -> str:
        """Add a commit to `main`; returns its revision."""
        revision = hashlib.sha1(repr((sorted(files.items()), self.messages)).encode()).hexdigest()
        self.commits[revision] = files
        self.names["main"] = revision
        self.messages.append(message)
        return revision

    @property
    def files(self) -> Files:
        """What `main` holds."""
        return self.commits[self.names["main"]]


@dataclass
class Fault:
    """Answers that the requests which match get instead of theirs.

    `what` is a status, `cut` (the connection ends in the middle) or `stale` (somebody else commits first).
    """

    pattern: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """Serves repositories from memory on a free port of this machine, as a context manager."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.repositories: dict[str, Repository] = {}
        self.large: dict[tuple[str, str], bytes] = {}
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
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
        """Stop answering at this address."""
        self._server.shutdown()
        self._server.server_close()

    def add_dataset(self, name: str, files: Files) -> str:
        """Make a data set repository; returns its revision."""
        return self.add_model(f"datasets/{name}", files)

    def add_model(self, name: str, files: Files, *names: str, gated: bool = False) -> str:
        """Make a model repository, or a further commit to `main` in one; returns its revision.

        `names` are tags (or branches) of the commit.
        """
        repository = self.repositories.setdefault(name, Repository())
        repository.gated = gated
        revision = repository.commit(files, "added")
        repository.names |= dict.fromkeys(names, revision)
        return revision

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment of a process whose client libraries talk to this server, with its own cache."""
        return {**os.environ, "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}

    def fault(self, request: str) -> Fault | None:
        """The fault that this request meets, counted down."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        begun = b"" if chunked else self.rfile.read(length // 2)
        request = f"{self.command} {path}"
        if path == "/api/repos/create":
            begun += self.rfile.read(length - len(begun))
            request += f" {json.loads(begun)['organization']}/{json.loads(begun)['name']}"
        self.server_hub.requests.append(request)
        fault = self.server_hub.fault(request)
        if fault is not None and fault.what == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        body = self._chunks() if chunked else begun + self.rfile.read(length - len(begun))
        self.server_hub.bodies.append(body)
        if fault is not None and fault.what == "stale":
            name = "/".join(path.split("/")[3:5])
            self.server_hub.add_model(name, {**self.server_hub.repositories[name].files, "other": b"!"})
        elif fault is not None:
            return self._fail(int(fault.what), "Injected", fault.headers)
        with self.server_hub.lock:
            for pattern, answer in self._routes(body, query).items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    return answer(*match.groups())
        return self._fail(404, "EntryNotFound")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _routes(self, body: bytes, query: dict[str, list[str]]) -> dict[str, Callable[..., None]]:
        def files_of(name: str, kind: str | None, revision: str | None, folder: str | None) -> None:
            self._api(name, kind, revision or "main", folder or "", body, query)

        return {
            r"(?:GET|HEAD) /((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
            r"POST /api/validate-yaml": lambda: self._json({"errors": [], "warnings": []}),
            r"POST /api/repos/create": lambda: self._create(json.loads(body)),
            r"GET /api/models/([^/]+/[^/]+)/auth-check/write": self._may_write,
            r"GET /api/models/([^/]+/[^/]+)/refs": self._references,
            r"PUT /api/models/([^/]+/[^/]+)/settings": lambda name: self._settings(name, json.loads(body)),
            r"POST /api/models/([^/]+/[^/]+)/preupload/main": lambda name: self._modes(
                name, json.loads(body)
            ),
            r"POST /api/models/([^/]+/[^/]+)/commit/main": lambda name: self._commit(name, body),
            r"POST /api/models/([^/]+/[^/]+)/tag/([^/]+)": lambda name, revision: self._tag(
                name, revision, json.loads(body)["tag"]
            ),
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": lambda name: self._batch(
                name, json.loads(body)
            ),
            r"PUT /lfs/([^/]+/[^/]+)/([0-9a-f]{64})": lambda name, oid: self._store(name, oid, body),
            r"POST /lfs/([^/]+/[^/]+)/verify": lambda name: self._json({}),
            r"(?:GET|POST) /api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)"
            r"(?:/(tree|paths-info|revision)/([^/]+)(?:/(.*))?)?": files_of,
        }

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _writable(self, name: str) -> Repository | None:
        """A repository that the request may write to; None if the answer has been that it may not."""
        if self._token() not in (WRITER, READER):
            self._fail(401, "InvalidToken")
        elif self._token() == READER or not name.startswith("user/"):
            self._fail(403, "Forbidden")
        elif name not in self.server_hub.repositories:
            self._fail(404, "RepoNotFound")
        else:
            return self.server_hub.repositories[name]
        return None

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.server_hub.url}/{name}", "name": name, "id": "0"}
        if self._token() not in (WRITER, READER):
            return self._fail(401, "InvalidToken")
        if self._token() == READER or not name.startswith("user/"):
            return self._fail(403, "Forbidden")
        if name in self.server_hub.repositories:
            return self._json(answer, 409)
        self.server_hub.add_model(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server_hub.repositories[name].private = asked.get("visibility") == "private"
        return self._json(answer)

    def _may_write(self, name: str) -> None:
        if self._writable(name):
            self._json({})

    def _settings(self, name: str, asked: dict[str, Any]) -> None:
        if repository := self._writable(name):
            repository.private = asked.get("visibility", "private" if repository.private else "") == "private"
            repository.gated = asked.get("gated", repository.gated)
            self._json({})

    def _references(self, name: str) -> None:
        found = self.server_hub.repositories[name].names
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit} for tag, commit in found.items()
        ]
        self._json({"branches": [], "tags": tags, "converts": []})

    def _tag(self, name: str, revision: str, tag: str) -> None:
        if repository := self._writable(name):
            if tag in repository.names:
                return self._fail(409, "TagExists")
            repository.names[tag] = revision
            self._json({})
        return None

    def _modes(self, name: str, asked: dict[str, Any]) -> None:
        """Tell which files go by LFS, and which are there already."""
        repository = self._writable(name)
        if repository is None:
            return
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": _oid_in_repository(file["path"], repository.files),
            }
            for file in asked["files"]
        ]
        self._json({"files": answer})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        """Tell where to put the large files that are not there yet."""
        url = f"{self.server_hub.url}/lfs/{name}"
        for item in asked["objects"]:
            if (name, item["oid"]) not in self.server_hub.large:
                item["actions"] = {
                    "upload": {"href": f"{url}/{item['oid']}"},
                    "verify": {"href": f"{url}/verify"},
                }
        self._json({"transfer": "basic", "objects": asked["objects"]})

    def _store(self, name: str, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._fail(400, "WrongContent")
        self.server_hub.large[name, oid] = body
        return self._json({})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self._writable(name)
        if repository is None:
            return None
        files, header = dict(repository.files), {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server_hub.large[name, value["oid"]]
        if header.get("parentCommit") not in (None, repository.names["main"]):
            return self._fail(412, "StaleParent")
        revision = repository.commit(files, header["summary"])
        return self._json(
            {
                "success": True,
                "commitOid": revision,
                "commitUrl": f"{self.server_hub.url}/{name}/commit/{revision}",
                "hookOutput": "",
            }
        )

    def _resolve(self, name: str, revision: str, file: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return None
        commit, files = found
        if file not in files:
            return self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        content = files[file]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._reply(206, content[first : last + 1], headers)
        return self._reply(200, content, headers)

    def _find(self, name: str, revision: str) -> tuple[str, Files] | None:
        """The commit asked for and its files; None if the answer has been that there is none."""
        repository = self.server_hub.repositories.get(name)
        commit = repository.find(revision) if repository else None
        owner = self._token() == WRITER and name.startswith("user/")
        if repository is None or (repository.private and not owner):
            self._fail(401, "RepoNotFound")
        elif repository.gated and not owner:
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
        repository = self.server_hub.repositories[name]
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self._json(
            {"_id": "0", "id": name.removeprefix("datasets/"), "sha": commit, "private": repository.private,
             "gated": repository.gated, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
             "siblings": siblings}
        )  # fmt: skip

    def _json(self, value: object, status: int = 200) -> None:
        self._reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

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


def _oid_in_repository(path: str, files: Files) -> str | None:
    if path not in files:
        return None
    content = files[path]
    return hashlib.sha256(content).hexdigest() if path.endswith(".safetensors") else _oid(content)
