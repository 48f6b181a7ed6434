"""Errors as clients see them: a status, OpenAI's or Ollama's shape, and nothing of the machine's insides.

The shape is that of https://platform.openai.com/docs/guides/error-codes: {"error": {message, type, param, code}}.
"""

from __future__ import annotations

from edgeship_runtime.errors import (
    ContextError,
    DependencyError,
    EdgeshipRuntimeError,
    TemplateError,
    UsageError,
)

_LONGEST = 1000  # characters of a message


class RequestError(EdgeshipRuntimeError):
    """A request that is refused: HTTP status, the member that is wrong (`param`), and a code for programs."""

    exit_code = 2
    kind = "request"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def busy(message: str, retry_after_s: int) -> RequestError:
    """The error for one request too many (429), with the seconds after which to try again."""
    return RequestError(message, status=429, code="rate_limit_exceeded", retry_after_s=max(1, retry_after_s))


def unavailable(message: str, code: str, hint: str = "") -> RequestError:
    """The error for a server that cannot answer now (503)."""
    return RequestError(message, status=503, code=code, hint=hint, retry_after_s=5)


def for_client(error: BaseException) -> RequestError:
    """What a client is told about an error; causes inside the machine go to the log alone."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextError):
        return RequestError(error.message, hint=error.hint, param="messages", code="context_length_exceeded")
    if isinstance(error, TemplateError):
        return RequestError(error.message, hint=error.hint, param="messages", code="template")
    if isinstance(error, DependencyError):  # something this server does not offer; the rest it does
        return RequestError(error.message, hint=error.hint, code="unsupported")
    if isinstance(error, UsageError):
        return RequestError(error.message, hint=error.hint, code="invalid_value")
    return unavailable("the model cannot answer now", "engine", hint="the server's log says why; try again")


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_body(error: RequestError) -> dict[str, object]:
    """The error in OpenAI's shape."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": _text(error), "type": kind, "param": error.param, "code": error.code}}


def ollama_body(error: RequestError) -> dict[str, object]:
    """The error in Ollama's shape (docs/api.md of ollama/ollama)."""
    return {"error": _text(error)}


def _text(error: RequestError) -> str:
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return text[:_LONGEST].encode("utf-8", "replace").decode()
