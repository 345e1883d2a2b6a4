"""Errors in the form of OpenAI's API: an HTTP status, and an object with message, type, param and code."""

from collections.abc import Mapping

from localgemma_cli.errors import (
    ContextOverflowError,
    EndpointError,
    InterruptedAnswer,
    LocalGemmaError,
    UsageError,
    as_user_error,
)

_INVALID = "invalid_request_error"
_STATUS: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that is sent to the client; `param` names the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def to_object(self) -> dict[str, object]:
        kind = _STATUS.get(self.status, _INVALID if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A request that cannot be answered because of one field."""
    return ApiError(400, message, param=param, code=code)


def stopping() -> ApiError:
    return ApiError(503, "The server is stopping.", code="server_stopping", headers={"Retry-After": "5"})


def as_api_error(error: BaseException) -> ApiError:
    """What a client is sent for any error of an answer."""
    if isinstance(error, ApiError):
        return error
    shown: LocalGemmaError = as_user_error(error)
    message = f"{shown.message} {shown.hint}"
    match error:
        case ContextOverflowError():
            return invalid("messages", message, "context_length_exceeded")
        case UsageError():
            return invalid(None, message)
        case InterruptedAnswer():
            return stopping()
        case EndpointError():
            return ApiError(502, message, code="endpoint_failed")
        case LocalGemmaError():
            return ApiError(500, message, code=error.kind)
    return ApiError(500, "The server failed unexpectedly. Start it with -v to see where.", code="failure")
