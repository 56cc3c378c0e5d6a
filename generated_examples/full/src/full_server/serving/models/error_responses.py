"""HTTP statuses of the errors of models. The models themselves know nothing of HTTP."""

from fastapi import FastAPI, Request, status
from fastapi.responses import JSONResponse

from ..http.errors import APIError, error_response
from . import model_errors


def from_model_error(error: model_errors.ModelError) -> APIError:
    """Gives an error of the models its status. The models themselves know nothing of HTTP."""
    message = str(error)
    match error:
        case model_errors.UnknownModel():
            return APIError(
                status.HTTP_404_NOT_FOUND, message, param="model", code="model_not_found"
            )
        case model_errors.InvalidInput():
            return APIError(
                status.HTTP_400_BAD_REQUEST, message, param=error.param, code=error.code
            )
        case model_errors.Overloaded():
            return APIError(
                status.HTTP_429_TOO_MANY_REQUESTS,
                message,
                code="overloaded",
                headers={"Retry-After": str(error.retry_after)},
            )
        case model_errors.DeadlineExceeded():
            # Another try would take as long again.
            return APIError(
                status.HTTP_504_GATEWAY_TIMEOUT,
                message,
                code="timeout",
                headers={"x-should-retry": "false"},
            )
        case _:
            headers = {"Retry-After": str(getattr(error, "retry_after", 1))}
            if getattr(error, "permanent", False):
                headers["x-should-retry"] = "false"
            return APIError(
                status.HTTP_503_SERVICE_UNAVAILABLE,
                message,
                code="model_unavailable",
                headers=headers,
            )


async def handle_model_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, model_errors.ModelError)
    return error_response(from_model_error(error))


def add_model_error_handler(app: FastAPI) -> None:
    app.add_exception_handler(model_errors.ModelError, handle_model_error)
