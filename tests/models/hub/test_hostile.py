"""Whatever answers in the hub's place: nothing outside of the cache is touched, and every download ends."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants
from support.raw_server import RawRequest, RawServer, opened, response

from localgemma_cli.errors import LocalGemmaError, NetworkError, UsageError
from localgemma_cli.models.hub import client as hub
from localgemma_cli.models.hub import download as hub_transfer

ID = "org/model"
COMMIT = "a" * 40
LARGE = os.urandom(3 * 2**20)
FILES = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors": LARGE}

Send = Callable[[socket.socket, RawRequest, bytes], None]


def sibling(name: str, content: bytes, **more: object) -> dict[str, object]:
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"lfs": {"sha256": hashlib.sha256(content).hexdigest()}} if len(content) > 100 else {}
    return {"rfilename": name, "size": len(content), "blobId": git, **large, **more}


def listing(*more: object, **changes: object) -> bytes:
    siblings = [*(sibling(name, content) for name, content in FILES.items()), *more]
    return json.dumps({"id": ID, "sha": COMMIT, "gated": False, "siblings": siblings, **changes}).encode()


def whole(connection: socket.socket, request: RawRequest, content: bytes) -> None:
    start = int(request.headers.get("range", "bytes=0-")[6:-1])
    status = "206 Partial" if start else "200 OK"
    field = f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}"
    connection.sendall(response(content[start:], field, status=status))


class Hub:
    """`listed` is what the API says, `send` how a file's bytes come."""

    def __init__(self) -> None:
        self.listed: bytes | Callable[[socket.socket], None] = listing()
        self.send: Send = whole
        self.asked: list[str] = []

    def handle(self, connection: socket.socket, request: RawRequest) -> None:
        path = unquote(request.path.partition("?")[0])
        if path.startswith("/api/"):
            if isinstance(self.listed, bytes):
                connection.sendall(response(self.listed))
            else:
                self.listed(connection)
            return
        name = path.rsplit("/", 1)[1]
        self.asked.append(name)
        send = self.send if name == "model.safetensors" else whole
        send(connection, request, FILES[name])


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub()
    with RawServer(served.handle) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        monkeypatch.setattr(hub_transfer, "_RETRY_SECONDS", 0.01)
        yield served


def fetch(revision: str | None = None) -> Path:
    return hub.fetch_snapshot(ID, revision=revision, offline=False, progress=lambda _: None)


def test_a_download_stops_at_the_size_that_was_listed(hostile: Hub, tmp_path: Path) -> None:
    sent: list[int] = []

    def endless(connection: socket.socket, request: RawRequest, content: bytes) -> None:
        connection.sendall(opened() + content)
        for _ in range(1000):
            sent.append(connection.send(b"more" * 2**16))

    hostile.send = endless
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == LARGE
    assert sum(sent) < 100 * 2**20
    assert not list(tmp_path.rglob("*.incomplete"))


def by_turns(connection: socket.socket, request: RawRequest, content: bytes) -> None:
    """From the start, whatever range was asked for; a little less each second time."""
    length = 2_400_000 if request.headers.get("range", "").startswith("bytes=25") else 2_500_000
    connection.sendall(response(content)[:length])


def one_by_one(connection: socket.socket, request: RawRequest, content: bytes) -> None:
    start = int(request.headers.get("range", "bytes=0-")[6:-1])
    field = f"Content-Range: bytes {start}-{len(content) - 1}/{len(content)}"
    answer = response(content[start:], field, status="206 P" if start else "200 OK")
    connection.sendall(answer[: answer.index(b"\r\n\r\n") + 5])


def another_part(connection: socket.socket, request: RawRequest, content: bytes) -> None:
    field = f"Content-Range: bytes 7-{len(content) - 1}/{len(content)}"
    status = "206 P" if "range" in request.headers else "200 OK"
    connection.sendall(response(content[7:], field, status=status)[:2_000_000])


@pytest.mark.parametrize("send", [by_turns, one_by_one, another_part])
def test_a_server_that_never_gets_further_is_asked_a_few_times(hostile: Hub, send: Send) -> None:
    hostile.send = send
    with pytest.raises(NetworkError):
        fetch()
    assert 3 <= hostile.asked.count("model.safetensors") <= 12


def test_a_connection_that_drips_is_given_up(hostile: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[int] = []  # seconds; from the first drip on, a minute more at each look at the clock

    def drip(connection: socket.socket, request: RawRequest, content: bytes) -> None:
        late.append(60)
        connection.sendall(opened())
        for at in range(6000):
            connection.sendall(content[at : at + 1])
            time.sleep(0.1)

    def monotonic() -> float:
        late.extend(late[-1:])
        return time.monotonic() + sum(late)

    clock = SimpleNamespace(monotonic=monotonic, sleep=lambda _: None)
    monkeypatch.setattr(hub_transfer, "time", clock)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 50)
    hostile.send = drip
    with pytest.raises(NetworkError, match="too slow"):
        fetch()
    assert hostile.asked.count("model.safetensors") == hub_transfer._RETRIES + 1


def for_ever(first: bytes, chunk: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    def write(connection: socket.socket) -> None:
        connection.sendall(first)
        until = time.monotonic() + 600
        while time.monotonic() < until:
            connection.sendall(chunk)
            time.sleep(pause)

    return write


@pytest.mark.parametrize(
    "listed",
    [
        for_ever(b"", b"x", 0.05),
        for_ever(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", 0.05),
        for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        for_ever(opened(kind="application/json"), b" ", 0.05),
        for_ever(opened(kind="application/json"), b" " * 65536),
        for_ever(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536),
        for_ever(b"HTTP/1.1 404 No\r\n\r\n", b"x", 0.05),
    ],
)
def test_a_listing_that_never_ends(
    hostile: Hub, listed: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE_SECONDS", 0.3)
    hostile.listed = listed
    began = time.monotonic()
    with pytest.raises(LocalGemmaError):
        fetch()
    assert time.monotonic() - began < 120


EVIL_NAMES = (
    *("../evil.json", "/tmp/evil.json", "..\\evil.json", "a/../../evil.json", "C:evil.json", "evil\0.json"),
    *("CON.json", "nul.json", "com1.json", "evil\n.json", "evil\x1b[31m.json", "..json", ".json", "-rf.json"),
    *("\ud83d.json", "x" * 300 + ".json", "evil:stream.json"),
)


def test_names_that_lead_elsewhere_are_left_out(hostile: Hub, tmp_path: Path) -> None:
    hostile.listed = listing(*(sibling(name, b"evil") for name in EVIL_NAMES))
    folder = fetch()
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert set(hostile.asked) == set(FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


@pytest.mark.parametrize(
    "listed",
    [
        *(listing(sibling("x.json", b"", size=size)) for size in (-1, 10**400, 1.5, True, "9", None, [])),
        *(listing(sibling("x.json", b"", blobId=blob)) for blob in (None, "../../x", 5, "g" * 40, "a" * 41)),
        *(listing(sibling("x.json", b"", lfs=lfs)) for lfs in ("x", 5, {"a": 1}, {"sha256": "../x"}, [1])),
        *(listing(sha=sha) for sha in (None, "main", "../../x", 5, "A" * 40)),
        *(listing(siblings=siblings) for siblings in ("x", 5, [None], [{}], [{"rfilename": 5}], {"a": 1})),
        *(json.dumps(value).encode() for value in (None, [], "x", 5)),
        b"[" * 100_000,
        b"9" * 5000,
        b"\xff\xfe",
        b"",
    ],
)
def test_a_listing_of_another_form_is_no_hub(hostile: Hub, listed: bytes, tmp_path: Path) -> None:
    hostile.listed = listed
    with pytest.raises(LocalGemmaError) as caught:
        fetch()
    assert (caught.value.message + caught.value.hint).isprintable()
    assert hostile.asked == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


EVIL_REVISIONS = (
    *(
        "../../x",
        "/etc/x",
        "..",
        ".",
        "a/../../x",
        "a\\..\\x",
        "x\0",
        "x\n",
        " ",
        "-x",
        "a//b",
        "a/",
        "/",
        "~",
    ),
    *("\x1b[31m", "x" * 201, "a b", "refs/../x", "C:x"),
)


@pytest.mark.parametrize("revision", EVIL_REVISIONS)
def test_a_revision_that_leads_out_of_the_cache_is_refused(
    hostile: Hub, revision: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        fetch(revision)
    assert (caught.value.message + caught.value.hint).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("revision", ["main", "refs/pr/7", "v1.0-rc+2", "feature/x_y"])
def test_a_revision_of_git_is_taken(hostile: Hub, revision: str, tmp_path: Path) -> None:
    assert fetch(revision).name == COMMIT
    assert (tmp_path / "hf/hub/models--org--model/refs" / revision).read_text() == COMMIT


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_links_in_the_cache_do_not_lead_writes_elsewhere(
    hostile: Hub, make: Callable[[Any, Any], None], tmp_path: Path
) -> None:
    victim, outside = tmp_path / "mine.txt", tmp_path / "outside"
    victim.write_bytes(b"mine")
    outside.mkdir()
    (outside / "config.json").write_text("mine too")
    repo = tmp_path / "hf/hub/models--org--model"
    for name in ("blobs", "refs", "snapshots"):
        (repo / name).mkdir(parents=True)
    digest = hashlib.sha256(LARGE).hexdigest()
    for place in (repo / f"blobs/{digest}.incomplete", repo / "refs/main", repo / f"refs/main.{os.getpid()}"):
        make(victim, place)
    os.symlink(outside, repo / "snapshots" / COMMIT)
    folder = fetch()
    assert (folder / "model.safetensors").read_bytes() == LARGE
    assert victim.read_bytes() == b"mine"
    assert [path.name for path in outside.iterdir()] == ["config.json"]
    assert (outside / "config.json").read_text() == "mine too"


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o002])
def test_nobody_else_may_write_into_a_cache_made_under_any_umask(
    hostile: Hub, umask: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        fetch()
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if not path.is_symlink() and ".locks" not in path.parts]
    assert len(made) > 5
    for path in made:
        assert not path.stat().st_mode & 0o022, path
    assert (tmp_path / "hf").stat().st_mode & 0o777 == 0o700
