"""Which requests are answered at all: not those of web pages, nor those that are too large."""

import pytest
from support.serving import ASK, CHAT, Serving

from localgemma_cli.serve.application import MOST_BODY
from localgemma_cli.serve.guard import is_local_name


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        (CHAT, {"Origin": "https://evil.example"}, "origin_not_allowed"),
        (CHAT, {"Origin": "null"}, "origin_not_allowed"),
        (CHAT, {"Origin": "http://localhost:3000"}, "origin_not_allowed"),
        (CHAT, {"Sec_Fetch_Site": "cross-site"}, "origin_not_allowed"),
        (CHAT, {"Host": "evil.example"}, "host_not_allowed"),
        ("/v1/models", {"Host": "evil.example:4366"}, "host_not_allowed"),
        ("/v1/models", {"Host": "127.0.0.1.evil.example"}, "host_not_allowed"),
        # DNS rebinding: to the browser, the page and this server have one name
        (CHAT, {"Host": "evil.example", "Origin": "http://evil.example"}, "host_not_allowed"),
    ],
)
def test_a_web_page_cannot_drive_the_server(
    served: Serving, path: str, headers: dict[str, str], code: str
) -> None:
    refused = served.send(path, ASK if path == CHAT else None, **headers)
    assert (refused.status, refused.error["code"]) == (403, code)
    assert not [name for name in refused.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_s_type_is_refused(served: Serving, kind: str) -> None:
    refused = served.send(CHAT, ASK, Content_Type=kind)
    assert (refused.status, refused.error["code"]) == (415, "invalid_content_type")
    assert f"got '{kind}'" in refused.error["message"]
    assert "-H 'Content-Type: application/json'" in refused.error["message"]


def test_a_preflight_gets_no_permission(served: Serving) -> None:
    asked = {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}
    refused = served.send(CHAT, method="OPTIONS", **asked)
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.2:80", "localhost", "LOCALHOST:1", "[::1]:4366", "[::1]"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_local_name(host)


@pytest.mark.parametrize(
    "host", ["", "a", "localhost.evil.example", "10.0.0.1", "[::2]", "127.0.0.1@a", "[", "0x7f.1"]
)
def test_names_of_others(host: str) -> None:
    assert not is_local_name(host)


def test_a_body_that_is_too_large_is_refused(served: Serving) -> None:
    refused = served.send(CHAT, b'{"messages": "' + b"x" * MOST_BODY + b'"}')
    assert (refused.status, refused.error["code"]) == (413, "request_too_large")


def test_unknown_paths_and_methods(served: Serving) -> None:
    for path, method, status, hint in (
        ("/v1/nowhere", "GET", 404, f"The path '/v1/nowhere' does not exist here. For chats, use {CHAT}."),
        (CHAT, "GET", 405, f"GET is not allowed for '{CHAT}'. Allowed: POST."),
        ("/health", "POST", 405, "POST is not allowed for '/health'. Allowed: "),
    ):
        refused = served.send(path, method=method)
        assert (refused.status, refused.error["code"]) == (status, "unknown_url")
        assert refused.error["message"].startswith(hint)
    assert served.send("/v1/models/other").error["code"] == "model_not_found"
