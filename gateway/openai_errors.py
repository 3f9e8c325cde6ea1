"""Errors as OpenAI's API has them: a status, and an object with message, type, param and code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.errors import (
    ProtocolError,
    RefusedError,
    RequestCancelledError,
    ServerTimeoutError,
    UnreachableError,
    UsageError,
)

_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"

_PARAMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "text_input": "prompt",
        "input_ids": "prompt",
        "apply_chat_template": "messages",
        "stop_words": "stop",
        "num_return_sequences": "n",
        "return_log_probs": "logprobs",
        "exclude_input_in_output": "echo",
        "guided_decoding_guide": "response_format",
        "guided_decoding_guide_type": "response_format",
        "request_output_len": "max_tokens",
    }
)
"""What OpenAI calls an input of Triton's model; other names are the same."""

# What this project's models and TensorRT-LLM's say of a prompt that is too long.
_TOO_LONG: Final = re.compile(r"max_seq_len|exceeds maximum input length")

# The words of this project's preprocessing.
_NO_TEMPLATE: Final = "the tokenizer has no chat template"


class ApiError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = _INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with the answer."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}

    def record(self) -> dict[str, Any]:
        """Return the body of the answer."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def unknown_model(name: str) -> ApiError:
    """Return the error for a model that is not served."""
    return ApiError(
        f"The model `{name}` does not exist or you do not have access to it.",
        status=404,
        code="model_not_found",
    )


def no_template(model: str) -> ApiError:
    """Return the error for a conversation with a model that has no chat template."""
    return ApiError(
        f"The model `{model}` has no chat template: ask /v1/completions, or start the gateway with "
        "--chat-template FILE, or the name of a family's plain one.",
        param="messages",
    )


def too_many(message: str, *, retry_after_s: int) -> ApiError:
    """Return the error for a client that is to come again later."""
    return ApiError(
        message,
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_s=retry_after_s,
    )


def api_error(error: Exception, model: str) -> ApiError:
    """Return what a client is told of an error between gateway and Triton, or of any other.

    What Triton says of a request is the client's to know; where Triton is, is not.
    """
    if isinstance(error, RefusedError):
        return _refused(error, model)
    if isinstance(error, UsageError):
        # What a GenerateRequest cannot hold it says by the field's name first: "seed is -1; …".
        return ApiError(str(error), param=_param(str(error).partition(" ")[0]))
    if isinstance(error, ServerTimeoutError):
        return ApiError("The model did not answer in time.", status=504, kind=_SERVER)
    if isinstance(error, RequestCancelledError):
        return ApiError("The server ended the request.", status=503, kind=_SERVER)
    if isinstance(error, UnreachableError):
        return ApiError(
            "The model's server cannot be reached.", status=503, kind=_SERVER, retry_after_s=1
        )
    if isinstance(error, ProtocolError):
        return ApiError("The model's server gave no proper answer.", status=502, kind=_SERVER)
    return ApiError("The gateway failed.", status=500, kind=_SERVER)


def _refused(error: RefusedError, model: str) -> ApiError:
    message = str(error)
    if _NO_TEMPLATE in message:
        return no_template(model)
    if error.is_passing:
        return ApiError(message, status=503, kind=_SERVER, code="overloaded", retry_after_s=1)
    is_long = _TOO_LONG.search(message)
    return ApiError(
        message,
        param=_param(error.field),
        code="context_length_exceeded" if is_long else None,
    )


def _param(field: str | None) -> str | None:
    return None if field is None else _PARAMS.get(field, field)
