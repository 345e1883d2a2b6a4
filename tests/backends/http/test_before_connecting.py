"""A fault on the way to a server says where it is: the proxy, the name, the certificate, the protocol."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.raw_server import RawServer

from localgemma_cli.backends.http import notices
from localgemma_cli.backends.http.backend import connect
from localgemma_cli.backends.http.endpoint import parse_endpoint
from localgemma_cli.errors import EndpointError

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(notices, "RETRY_SECONDS", (0.0, 0.0))


def failure(url: str) -> str:
    """What happened and what to do."""
    with pytest.raises(EndpointError) as caught:
        connect(parse_endpoint(url, timeout=120, environ={}), lambda _: None, lambda _: None)
    said = f"{caught.value.message} {caught.value.hint}"
    assert "answer was whole" not in said
    return said


@pytest.fixture
def closed_port() -> Iterator[int]:
    """That nothing listens at, nor can begin to meanwhile."""
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        yield int(owner.getsockname()[1])


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HTTP_PROXY", "klingon://bird:of@prey:1", ["HTTP_PROXY", "unknown kind", "http://"]),
        ("all_proxy", "ftp://h:1", ["all_proxy", "unknown kind"]),
        ("ALL_PROXY", "socks5://me:word@h:1080", ["ALL_PROXY", "SOCKS", "pip install socksio"]),
        ("https_proxy", "http://h:port", ["https_proxy", "not the address of a proxy"]),
        ("http_proxy", "http://", ["http_proxy", "not the address of a proxy"]),
    ],
)
def test_a_proxy_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]
) -> None:
    if value.startswith("socks") and find_spec("socksio"):
        pytest.skip("needs an environment without the package socksio")
    monkeypatch.setenv(variable, value)
    said = failure("http://example.invalid:8000")
    for word in words:
        assert word in said
    assert "bird" not in said
    assert "word" not in said.replace("password", "")


def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{closed_port}")
    said = failure("http://example.invalid")
    assert f"through the proxy of http_proxy=127.0.0.1:{closed_port}" in said
    assert "Connection refused" in said
    assert "secret" not in said
    monkeypatch.setenv("no_proxy", "example.invalid")
    assert "Host not found: example.invalid" in failure("http://example.invalid")


def test_a_port_where_nothing_or_something_else_listens(closed_port: int) -> None:
    said = failure(f"http://127.0.0.1:{closed_port}")
    assert "Cannot connect to http://127.0.0.1" in said
    assert "Connection refused" in said
    with RawServer(lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as server:
        assert "did not answer with HTTP" in failure(server.url)


def test_certificates_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    assert "SSL_CERT_FILE" in failure("https://127.0.0.1:1")
    (tmp_path / "nowhere.pem").write_text("no certificate")
    assert "Cannot read the certificates for HTTPS" in failure("https://127.0.0.1:1")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert"), "-days", "2", "-subj", "/CN=x"]
    subprocess.run([*made, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")

    def handshake(listener: socket.socket) -> None:
        with suppress(OSError):  # the client does not trust it; an SSLError is one
            context.wrap_socket(listener.accept()[0], server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=handshake, args=(listener,), daemon=True).start()
        said = failure(f"https://127.0.0.1:{listener.getsockname()[1]}")
    assert "failed the TLS check: self-signed certificate" in said
