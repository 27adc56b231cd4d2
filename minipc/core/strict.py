"""The base of every model that reads a file: exact types, no unknown keys, immutable."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from minipc.core.errors import ConfigError


class Strict(BaseModel):
    """Accept exactly the declared keys and types; convert nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Any, source: str, next_step: str) -> Model:
    """Return the values as a model.

    Args:
        source: where the values come from, for the error message.
        next_step: what the operator does about an error.

    Raises:
        ConfigError: names the source and, for each wrong key, what was given and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain(each)}" for each in error.errors()), next_step) from None


def _explain(detail: ErrorDetails) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "missing":
            return f"{key}: missing; it is REQUIRED"
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "literal_error":
            allowed = detail["ctx"]["expected"]
        case "value_error":
            allowed = str(detail["ctx"]["error"])
        case _:
            allowed = detail["msg"].lower()
    return f"{key}: given {detail['input']!r}, allowed: {allowed}"
