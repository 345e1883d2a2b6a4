"""A server for tests, whose backend holds an answer for as long as a test needs it held.

A question `hold` is answered with a first word, and then with nothing until it is cancelled. Each other
question is answered with itself.
"""

import sys
from collections.abc import Iterator, Sequence
from threading import Event as Cancel

from localgemma_cli.conversation import FinishReason, Message
from localgemma_cli.events import Delta, Event, Finished, Timing, Usage
from localgemma_cli.sampling import Sampling
from localgemma_cli.serve.answer_queue import AnswerQueue
from localgemma_cli.serve.application import Application, Served
from localgemma_cli.serve.listeners import bind_address
from localgemma_cli.serve.server import serve_until_signal


class GatedBackend:
    name = "local"
    note = None
    continues = True
    context_length = 1024

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        text, reason = messages[-1].content, "stop"
        if text == "fail":
            raise RuntimeError("a bug")
        yield Delta("first" if text == "hold" else text)
        if text == "hold":
            cancel.wait()
            reason = "interrupted"
        yield Finished(_reason(reason), Usage(1, 0, 1), Timing(0.0, None, 0.0))

    def count(self, messages: Sequence[Message]) -> int:
        return 1

    def recognizes(self, answer: Message) -> bool:
        return True

    def prompt(self, messages: Sequence[Message]) -> str:
        return ""

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        return []


def _reason(name: str) -> FinishReason:
    return "interrupted" if name == "interrupted" else "stop"


def main() -> int:
    def say(line: object) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    backend, address = GatedBackend(), bind_address("127.0.0.1", 0)
    queue = AnswerQueue(backend, int(sys.argv[1]))
    served = Served(queue, backend, "gate", (), Sampling(), None, say, say)
    return serve_until_signal(
        Application(served), queue, [address.socket], lambda: say(f"Serving at {address.url}/v1")
    )


if __name__ == "__main__":
    sys.exit(main())
