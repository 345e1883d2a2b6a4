"""A server on loopback for the tests of --endpoint."""

from collections.abc import Iterator

import pytest
from support.chat_server import (
    ChatServer,
)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running
