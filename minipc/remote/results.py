"""Read results that the programs on a machine have written, with the classes of `minipc_machine`."""

from __future__ import annotations

from typing import TypeVar

from minipc.core.errors import CouldNotVerifyError
from minipc_machine import schema

T = TypeVar("T")


def parse_result(kind: type[T], text: str | bytes, where: str) -> T:
    """Return a result as an instance of its class. Fields that another version has added are ignored.

    Args:
        where: machine and file, for the error.

    Raises:
        CouldNotVerifyError: the text is not such a result.
    """
    try:
        return schema.loads(kind, text, where, ignore_unknown=True)
    except schema.SchemaError as error:
        raise CouldNotVerifyError(
            str(error), "another version of minipc may have converged the machine; run `minipc apply`"
        ) from None
