"""A small model hub on 127.0.0.1 that speaks the part of the hub's protocol that a download uses.

Metadata comes from /api/models, small files from /resolve; large files (LFS) are redirected to a second server, as
the hub redirects to its storage. It keeps what it was asked, and can be told to misbehave.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """What was asked. `storage` where it reached the second server."""

    path: str
    range: str | None
    authorization: str | None
    storage: bool


@dataclass(frozen=True)
class OddAnswer:
    """What somebody else than the hub may answer, whatever is asked. `length` is claimed for the body.

    With a header `Connection`, which is then `close`, no length is claimed.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


@dataclass
class FakeRepo:
    """A repository: its files by commit, the last commit being `main`, and its card's metadata."""

    commits: dict[str, dict[str, bytes]]
    card: dict[str, str] | None = None
    gated: bool = False

    @property
    def main(self) -> str:
        return list(self.commits)[-1]


@dataclass
class FakeHub:
    """What the two servers serve, and how they misbehave.

    `odd` maps a file to answers in the place of the next ones, of which None are the right ones. `cut` maps
    a file to the numbers of bytes after which its connection drops, one for each request; `wrong`
    maps a file to bytes sent in place of its own, `sizes` and `hashes` to what is claimed for it; `ranges` is
    whether byte ranges are served; `status` and `error` are the answer to everything.
    """

    repos: dict[str, FakeRepo]
    cut: dict[str, list[int]] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    odd: dict[str, list[OddAnswer | None]] = field(default_factory=dict)
    status: int | None = None
    error: str = ""
    requests: list[Request] = field(default_factory=list)
    address: str = ""
    storage: str = ""

    def asked_for(self, path: str) -> list[Request]:
        """Requests that were answered with a file's bytes, or could have been."""
        return [request for request in self.requests if request.path.endswith(path)]


def is_large(path: str) -> bool:
    return path.endswith((".pt", ".pth", ".model"))


def sibling(hub: FakeHub, path: str, data: bytes) -> dict[str, object]:
    size = hub.sizes.get(path, len(data))
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, object] = {"rfilename": path, "size": size, "blobId": blob}
    if is_large(path):
        entry["lfs"] = {
            "sha256": hub.hashes.get(path, hashlib.sha256(data).hexdigest()),
            "size": size,
            "pointerSize": 134,
        }
    return entry


class Server(ThreadingHTTPServer):
    def handle_error(self, request: object, address: object) -> None:
        """A client that hangs up is no news here."""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run both servers until the block ends."""
    servers = [Server(("127.0.0.1", 0), _handler(hub, storage)) for storage in (False, True)]
    hub.address, hub.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(hub: FakeHub, storage: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).lstrip("/")
            headers = self.headers
            hub.requests.append(Request(path, headers["Range"], headers["Authorization"], storage))
            if hub.status is not None:
                self._answer(hub.status, b"", {"X-Error-Code": hub.error})
            elif path.startswith("api/models/"):
                self._metadata(path.removeprefix("api/models/"))
            else:
                self._resolve(path)

        def _metadata(self, path: str) -> None:
            name, _, revision = path.partition("/revision/")
            repo = hub.repos.get(name)
            if repo is None:
                return self._answer(401, b"", {"X-Error-Message": "Invalid username or password."})
            commit = repo.main if revision == "main" else revision
            if commit not in repo.commits:
                return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            siblings = [sibling(hub, path, data) for path, data in repo.commits[commit].items()]
            info = {"id": name, "sha": commit, "siblings": siblings, "cardData": repo.card, "private": False}
            return self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _resolve(self, address: str) -> None:
            name, _, rest = address.partition("/resolve/")
            commit, _, path = rest.partition("/")
            repo = hub.repos[name]
            if repo.gated and not storage and self.headers["Authorization"] is None:
                return self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
            if is_large(path) and not storage:
                return self._answer(302, b"", {"Location": f"{hub.storage}/{address}", "X-Repo-Commit": commit})
            return self._send(path, hub.wrong.get(path, repo.commits[commit][path]))

        def _send(self, path: str, data: bytes) -> None:
            if (odd := hub.odd.get(path)) and (answer := odd.pop(0)) is not None:
                self._answer(answer.status, answer.body, answer.headers, length=answer.length)
                return None
            wanted = self.headers["Range"]
            if wanted is None or not hub.ranges:
                return self._answer(200, data, {"ETag": '"etag"'}, cut=self._cut(path))
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._answer(206, data[start:], {"Content-Range": span}, cut=self._cut(path))

        def _cut(self, path: str) -> int | None:
            cuts = hub.cut.get(path)
            return cuts.pop(0) if cuts else None

        def _answer(
            self,
            status: int,
            body: bytes,
            headers: dict[str, str] | None = None,
            cut: int | None = None,
            length: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if "Connection" not in (headers or {}):
                self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body[:cut])
            self.close_connection = self.close_connection or (cut, length) != (None, None)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output to themselves."""

    return Handler
