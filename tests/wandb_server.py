"""As much of a W&B server, over real HTTP, as the real client needs to send a run.

What runs send is kept: `history` by the run's id, and every body of a request in `bodies`.
"""

import base64
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

KEY = "a" * 8 + "secret" + "b" * 26
"""The one API key that is valid."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, address: Any) -> None:
        """Clients that disconnect are not reported."""


class WandBServer:
    """Answers on a free port of this machine, as a context manager.

    With `leaves` it takes the beginning of a run, and from then on cuts every connection.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.operations: list[str] = []
        self.files: list[str] = []
        self.bodies: list[bytes] = []
        self.leaves = False
        server = self

        class Handler(_Handler):
            owner = server

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: WandBServer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.owner.bodies.append(body)
        if self.owner.leaves and "UpsertBucket" in self.owner.operations:
            self.close_connection = True
            return
        if self.path == "/graphql":
            self._graphql(json.loads(body))
        elif match := re.fullmatch(r"/files/.*/([^/]+)/file_stream", self.path):
            self._stream(match[1], json.loads(body))
        elif self.path.startswith("/upload/"):
            self.owner.files.append(self.path.removeprefix("/upload/"))
            self._json({})
        else:
            self._json({})

    do_POST = do_PUT = do_HEAD = do_GET

    def _graphql(self, asked: dict[str, Any]) -> None:
        expected = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            return self._json({"errors": [{"message": "invalid API key"}]}, 401)
        name, given = asked.get("operationName", ""), asked.get("variables") or {}
        self.owner.operations.append(name)
        project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
        run = {
            "id": "r",
            "name": given.get("name"),
            "displayName": given.get("displayName"),
            "project": project,
        }
        answers: dict[str, Any] = {
            "Viewer": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}},
            "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": True}},
            "CreateArtifact": {
                "createArtifact": {
                    "artifact": {
                        "id": "a",
                        "state": "COMMITTED",
                        "artifactSequence": {"id": "s", "latestArtifact": None},
                    }
                }
            },
            "CreateRunFiles": {
                "createRunFiles": {
                    "runID": "r",
                    "uploadHeaders": [],
                    "files": [
                        {"name": file, "uploadUrl": f"{self.owner.url}/upload/{file}"}
                        for file in given.get("files", [])
                    ],
                }
            },
        }
        return self._json({"data": answers.get(name, {"project": None})})

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        for chunk in (sent.get("files") or {}).get("wandb-history.jsonl", {}).get("content", []):
            self.owner.history.setdefault(run, []).append(json.loads(chunk))
        self._json({})

    def _json(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
