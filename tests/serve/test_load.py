"""Many requests from many clients at once."""

import json
from concurrent.futures import ThreadPoolExecutor

import psutil  # type: ignore[import-untyped]
from support.serving import CHAT, Serving

CLIENTS, EACH = 8, 63  # 504 requests
WARM_UP = 8  # requests of each client before the memory is measured
GROWTH = 16e6  # bytes


def test_many_clients_lose_no_answer_keep_their_order_and_fill_no_memory(served: Serving) -> None:
    """Each client counts on one connection; an answer's number of tokens says which request it is for."""
    process = psutil.Process(served.pid)

    def count(_: int) -> tuple[list[int], int]:
        connection, tokens, memory = served.connect(), list[int](), 0
        for at in range(EACH):
            if at == WARM_UP:
                memory = process.memory_info().rss
            asked = {
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 1 + at % 3,
                "temperature": 0,
            }
            connection.request("POST", CHAT, json.dumps(asked))
            response = connection.getresponse()
            assert response.status == 200, response.read()
            tokens.append(json.load(response)["usage"]["completion_tokens"])
        connection.close()
        return tokens, memory

    with ThreadPoolExecutor(CLIENTS) as pool:
        counted = list(pool.map(count, range(CLIENTS)))
    assert [tokens for tokens, _ in counted] == [[1 + at % 3 for at in range(EACH)]] * CLIENTS
    assert process.memory_info().rss - max(memory for _, memory in counted) < GROWTH
