"""The routes of the server, and the one place where errors become responses."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from localgemma_cli.backends.base import Backend
from localgemma_cli.documents import format_value
from localgemma_cli.sampling import Sampling
from localgemma_cli.serve.answer_queue import AnswerQueue
from localgemma_cli.serve.answer_response import AnswerResponse
from localgemma_cli.serve.api_error import ApiError, as_api_error, invalid
from localgemma_cli.serve.chat_request import Asked, parse_body, parse_chat, parse_text
from localgemma_cli.serve.guard import check_request
from localgemma_cli.serve.reply import CHAT, TEXT, Reply
from localgemma_cli.serve.request_fields import Fields

MOST_BODY = 16 << 20  # bytes; a context of 256,000 tokens has about 1 MB of text
_BODY_SECONDS = 60.0
_CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Served:
    """What the server offers: a model by its id and other names, and the defaults of requests.

    `log` gets a line for each request; `note_failure` each error that is not the client's.
    """

    queue: AnswerQueue
    backend: Backend
    model: str
    names: tuple[str, ...]
    defaults: Sampling
    key: str | None
    log: Callable[[str], None]
    note_failure: Callable[[BaseException], None]


class Application:
    """The ASGI application of one served model."""

    def __init__(self, served: Served) -> None:
        self._served, self._created = served, int(time.time())
        self._routes = Router(
            [
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._one_model),
                Route(_CHAT_PATH, self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            check_request(scope, self._served.key)
            await self._routes({**scope, "app": self}, receive, watched)  # an app gets errors as exceptions
        except ClientDisconnect:
            pass
        except Exception as error:
            if status:  # the head has been sent
                raise
            wrong = _unknown_url(error, scope) if isinstance(error, HTTPException) else None
            await _response(wrong or self._as_api_error(error))(scope, receive, watched)
        seconds = time.perf_counter() - started
        self._served.log(f"{scope['method']} {scope['path']} {status or 'disconnected'} {seconds:.2f} s")

    def _as_api_error(self, error: Exception) -> ApiError:
        shown = as_api_error(error)
        if shown.status >= 500 and not isinstance(error, ApiError):
            self._served.note_failure(error)
        return shown

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def _one_model(self, request: Request) -> Response:
        self._require_model(request.path_params["name"])
        return JSONResponse(self._model_object())

    async def _chat(self, request: Request) -> AnswerResponse:
        asked = await self._parse(parse_chat, request)
        return self._answer(asked, Reply(CHAT, self._served.model, asked.include_usage))

    async def _complete(self, request: Request) -> AnswerResponse:
        if self._served.backend.name != "local":
            raise ApiError(
                404, "The server behind this one is asked for chats only.", code="unsupported_endpoint"
            )
        asked = await self._parse(parse_text, request)
        return self._answer(asked, Reply(TEXT, self._served.model, asked.include_usage))

    async def _parse(self, parse: Callable[[Fields, Sampling], Asked], request: Request) -> Asked:
        """In a thread: a large schema takes seconds, in which other clients are served."""
        body = await read_body(request)
        return await asyncio.to_thread(lambda: parse(parse_body(body), self._served.defaults))

    def _answer(self, asked: Asked, reply: Reply) -> AnswerResponse:
        self._require_model(asked.model)
        if asked.messages[-1].role == "assistant" and not self._served.backend.continues:
            raise invalid(
                "messages", "The server behind this one cannot continue an answer.", "invalid_value"
            )
        return AnswerResponse(self._served.queue, asked, reply, self._as_api_error)

    def _require_model(self, name: str | None) -> None:
        served = self._served
        if name and name not in (served.model, *served.names):
            raise ApiError(
                404,
                f"The model {name[:100]!r} is not served here, only {served.model!r}.",
                param="model",
                code="model_not_found",
            )

    def _model_object(self) -> dict[str, object]:
        served = self._served
        context = served.backend.context_length
        length = {} if context is None else {"max_model_len": context}
        return {
            "id": served.model,
            "object": "model",
            "created": self._created,
            "owned_by": "localgemma",
            **length,
        }


async def read_body(request: Request) -> bytes:
    """The whole body. ApiError above `MOST_BODY` bytes, or where it does not come in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BODY:
                    raise ApiError(
                        413, f"The request is larger than {MOST_BODY >> 20} MiB.", code="request_too_large"
                    )
    except TimeoutError:
        raise ApiError(408, "The request did not arrive in time.", code="request_timeout") from None
    return bytes(body)


def _unknown_url(error: HTTPException, scope: Scope) -> ApiError:
    """A path that does not exist here, or a method that it does not have."""
    headers, path = error.headers or {}, format_value(scope["path"])
    if error.status_code == 405:
        message = f"{scope['method']} is not allowed for {path}. Allowed: {headers.get('Allow')}."
    else:
        message = f"The path {path} does not exist here. For chats, use {_CHAT_PATH}."
    return ApiError(error.status_code, message, code="unknown_url", headers=headers)


def _response(error: ApiError) -> Response:
    return JSONResponse(error.to_object(), error.status, error.headers)
