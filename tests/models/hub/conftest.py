"""A hub on loopback with the model that most tests fetch."""

from collections.abc import Iterator

import pytest
from support.hub_calls import FILES, ID
from support.hub_server import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer({ID: FILES}) as server:
        yield server
