"""A small hub on loopback: enough of the model hub's API, gates, redirects and failures for the real client.

with HubServer({"org/name": Repo({"config.json": b"{}"})}) as hub:
    subprocess.run(..., env=hub.environment(tmp_path, token="hf_good"))
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LARGE = (".safetensors", ".bin", ".gguf", ".model")
_FOREIGN = re.compile(r"HF_|HUGGING|TRANSFORMERS_|LOCALGEMMA_|.*_proxy$", re.IGNORECASE)
_API = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(?:/(?P<verb>revision|tree)/(?P<revision>[^/]+))?/?")
_RESOLVE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_LARGE_FILE = re.compile(r"/cdn/(?P<digest>[0-9a-f]{64})/(?P<name>.+)")


@dataclass(frozen=True)
class Repo:
    """A model; `gated` is as the hub says it, `refusals` is what it tells the owner of a token."""

    files: Mapping[str, bytes]
    gated: str | bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)
    claimed_sizes: Mapping[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @classmethod
    def from_folder(cls, folder: Path, **kwargs: Any) -> "Repo":
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return cls(files, **kwargs)

    @property
    def commit(self) -> str:
        parts = (name.encode() + b"\0" + content for name, content in sorted(self.files.items()))
        return hashlib.sha1(b"\0".join(parts)).hexdigest()

    def size(self, name: str) -> int:
        return self.claimed_sizes.get(name, len(self.files[name]))

    def git_id(self, name: str) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.files[name]) + self.files[name]).hexdigest()

    def sha256(self, name: str) -> str | None:
        """None for a small file, which lies in git itself."""
        return hashlib.sha256(self.files[name]).hexdigest() if name.endswith(_LARGE) else None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Fault:
    """After `after` bytes of a file the connection is cut, or waits for `HubServer.release`."""

    after: int
    times: int
    holds: bool


class HubServer:
    """Serves `repos`; `requests` is everything that was asked, in order."""

    def __init__(
        self,
        repos: Mapping[str, Repo | Mapping[str, bytes] | Path],
        *,
        tokens: tuple[str, ...] = ("hf_good",),
    ) -> None:
        self.requests: list[Request] = []
        self.tokens = tokens
        self.status: int | None = None
        self.warning: str | None = None
        self.refuses_ranges = False
        self._latest: dict[str, Repo] = {}
        self._commits: dict[tuple[str, str], Repo] = {}
        self._faults: dict[str, Fault] = {}
        self._released = threading.Event()
        for model_id, repo in repos.items():
            self.publish(model_id, repo)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; whoever connects afterwards is refused."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, *, token: str | None = None, **extra: str) -> dict[str, str]:
        """The variables of a process that knows this hub only, and keeps everything under `home`."""
        kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        folders = {"HF_HOME": str(home / "hf"), "LOCALGEMMA_HOME": str(home / "lg")}
        patient = {"HF_HUB_DOWNLOAD_TIMEOUT": "600"}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", **patient}
        return {**kept, **folders, **ours, **({"HF_TOKEN": token} if token else {}), **extra}

    def publish(self, model_id: str, repo: Repo | Mapping[str, bytes] | Path) -> Repo:
        """Make this the newest commit of a model; older ones stay reachable by their commit."""
        whole = Repo.from_folder(repo) if isinstance(repo, Path) else repo
        whole = whole if isinstance(whole, Repo) else Repo(whole)
        self._latest[model_id] = self._commits[model_id, whole.commit] = whole
        return whole

    def fail_with(self, status: int | None) -> None:
        """Answer every request with this status from now on; None ends it."""
        self.status = status

    def cut(self, name: str, after: int, times: int = 1) -> None:
        """Close the connection after so many bytes of a file, so many times."""
        self._faults[name] = Fault(after, times, holds=False)

    def hold(self, name: str, after: int) -> None:
        """Send so many bytes of a file, once, and then nothing until `release`."""
        self._faults[name] = Fault(after, 1, holds=True)

    def release(self) -> None:
        self._released.set()

    def asked_for(self, name: str) -> list[Request]:
        """The requests for the content of one file, redirects not counted twice."""
        large = name.endswith(_LARGE)
        return [
            r
            for r in self.requests
            if r.method == "GET" and r.path.endswith(f"/{name}") and r.path.startswith("/cdn/") == large
        ]

    def find(self, model_id: str, revision: str) -> Repo | None:
        latest = self._latest[model_id]
        return latest if revision in ("main", *latest.tags) else self._commits.get((model_id, revision))

    def has(self, model_id: str) -> bool:
        return model_id in self._latest

    def content(self, digest: str, name: str) -> bytes | None:
        whole = (
            r.files[name] for r in self._commits.values() if name in r.files and r.sha256(name) == digest
        )
        return next(whole, None)

    def body_limit(self, name: str) -> Fault | None:
        fault = self._faults.get(name)
        if fault is None or fault.times == 0:
            return None
        fault.times -= 1
        return fault

    def wait_for_release(self) -> None:
        self._released.wait()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        server_hub = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        if hub.status is not None:
            self._refuse(hub.status, None, "Something went wrong\x1b[31m\r on our side")
        elif large := _LARGE_FILE.fullmatch(path):
            self._send_file(large["name"], hub.content(large["digest"], large["name"]), {})
        elif token is not None and token not in hub.tokens:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif match := _API.fullmatch(path) or _RESOLVE.fullmatch(path):
            self._answer_about(match.groupdict(), token)
        else:
            self._refuse(404, None, "Not found")

    def _answer_about(self, asked: dict[str, str | None], token: str | None) -> None:
        hub, model_id, name = self.server_hub, asked["id"] or "", asked.get("name")
        if not hub.has(model_id):
            # An anonymous caller is not told whether a model is missing or private.
            message = "Repository not found" if token else "Invalid username or password."
            return self._refuse(404 if token else 401, "RepoNotFound", message)
        repo = hub.find(model_id, asked["revision"] or "main")
        if repo is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {asked['revision']}")
        if name is None:
            return self._send_json(_tree(repo) if asked["verb"] == "tree" else _info(model_id, repo))
        if repo.gated and (token is None or token in repo.refusals):
            message = repo.refusals[token] if token else f"Access to model {model_id} is restricted."
            return self._refuse(403 if token else 401, "GatedRepo", message)
        if name not in repo.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._resolve(repo, name)

    def _resolve(self, repo: Repo, name: str) -> None:
        """A small file, or the way to a large one on another host, which must never see the token."""
        commit, digest = {"X-Repo-Commit": repo.commit}, repo.sha256(name)
        if digest is None:
            return self._send_file(name, repo.files[name], {**commit, "ETag": f'"{repo.git_id(name)}"'})
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(repo.size(name))}
        location = f"http://localhost:{self.server_hub.port}/cdn/{digest}/{name}"
        return self._send(302, b"", {**commit, **linked, "Location": location})

    def _send_file(self, name: str, content: bytes | None, headers: dict[str, str]) -> None:
        if content is None:
            return self._refuse(404, None, "Not found")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or self.server_hub.refuses_ranges:
            return self._send(200, content, headers, name)
        start, size = int(wanted[1]), len(content)
        if start >= size:
            return self._refuse(416, None, "Range not satisfiable")
        end = min(int(wanted[2]) + 1, size) if wanted[2] else size
        field = {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        return self._send(206, content[start:end], {**headers, **field}, name)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        shown = re.sub(r"[^\x20-\x7e]", "", message)
        headers = {"X-Error-Message": shown, **({"X-Error-Code": code} if code else {})}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {**headers, "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], name: str | None = None) -> None:
        self.send_response(status)
        if self.server_hub.warning:
            self.send_header("X-HF-Warning", self.server_hub.warning)
        for key, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = self.server_hub.body_limit(name) if name else None
        try:
            self.wfile.write(body if fault is None else body[: fault.after])
            if fault is not None and fault.holds:
                self.server_hub.wait_for_release()
                self.wfile.write(body[fault.after :])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # a killed client is what some tests are about
        if fault is not None and not fault.holds:
            self.close_connection = True


def _info(model_id: str, repo: Repo) -> dict[str, Any]:
    siblings = [{"rfilename": name, **_sizes(repo, name, "blobId", "sha256")} for name in repo.files]
    return {"id": model_id, "sha": repo.commit, "private": False, "gated": repo.gated, "siblings": siblings}


def _tree(repo: Repo) -> list[dict[str, Any]]:
    return [{"type": "file", "path": name, **_sizes(repo, name, "oid", "oid")} for name in repo.files]


def _sizes(repo: Repo, name: str, git_key: str, sha_key: str) -> dict[str, Any]:
    size, sha256 = repo.size(name), repo.sha256(name)
    large = {} if sha256 is None else {"lfs": {sha_key: sha256, "size": size, "pointerSize": 134}}
    return {"size": size, git_key: repo.git_id(name), **large}
