"""Read and write JSON as dataclasses, strictly: the writer and the reader of a file share one class.

pydantic does this on the controller, but the machines have only the standard library. Supported field types: other
dataclasses, str, int, float, bool, None, Any, Literal, list, tuple (of one type), dict[str, T], and unions of them. A
field with a default may be missing.
"""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from minipc_machine.program import FailedError

T = TypeVar("T")


class SchemaError(FailedError, ValueError):
    """Data does not have the form that was expected. The text names the file and the field."""


def parse(kind: type[T], data: object, where: str, *, ignore_unknown: bool = False) -> T:
    """Return an instance of a type, usually a dataclass, made from what JSON holds.

    Args:
        where: what is read, such as a path; for the error.
        ignore_unknown: accept fields that the class does not have. For results, which may come from another version of
            the program; never for settings, where an unknown field is a mistake.

    Raises:
        SchemaError: a field is missing, unknown, or has another type.
    """
    made: T = _value(kind, data, where, ignore_unknown)
    return made


def load(kind: type[T], path: Path, *, ignore_unknown: bool = False) -> T:
    """Return the content of a JSON file as a dataclass.

    Raises:
        SchemaError: the file is not JSON, or does not have the fields of the class.
        OSError: the file can't be read.
    """
    return loads(kind, path.read_text(encoding="utf-8"), str(path), ignore_unknown=ignore_unknown)


def loads(kind: type[T], text: str | bytes, where: str, *, ignore_unknown: bool = False) -> T:
    """Return JSON text as a dataclass. Raises SchemaError as `load` does."""
    return parse(kind, decode(text, where), where, ignore_unknown=ignore_unknown)


def decode(text: str | bytes, where: str) -> Any:
    """Return what JSON text holds. Raises SchemaError if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SchemaError(f"{where} is not valid JSON: {error}") from None


def dump(value: Any, indent: int | None = 1) -> str:
    """Return a dataclass, or a dict of them, as JSON text that ends with a newline."""
    return json.dumps(value, indent=indent, default=dataclasses.asdict) + "\n"


def _dataclass(kind: Any, data: object, where: str, ignore: bool) -> Any:
    if not isinstance(data, dict):
        raise SchemaError(f"{where}: expected an object, found {_name(data)}")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = [name for name in data if name not in fields]
    if unknown and not ignore:
        raise SchemaError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in data and not _has_default(field)]
    if missing:
        raise SchemaError(f"{where}: the field {missing[0]!r} is missing")
    given = {name: _value(hints[name], data[name], f"{where}: {name}", ignore) for name in fields if name in data}
    return kind(**given)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _value(kind: Any, data: Any, where: str, ignore: bool) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        return _union(arguments, data, where, ignore)
    if origin is Literal:
        if data in arguments:
            return data
        raise SchemaError(f"{where}: expected one of {', '.join(map(repr, arguments))}, found {data!r}")
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where, ignore)
    if origin in (list, tuple):
        if not isinstance(data, list):
            raise SchemaError(f"{where}: expected a list, found {_name(data)}")
        if origin is tuple and arguments[-1] is not Ellipsis and len(data) != len(arguments):
            raise SchemaError(f"{where}: expected {len(arguments)} values, found {len(data)}")
        return origin(_value(arguments[0], each, f"{where}[{number}]", ignore) for number, each in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            raise SchemaError(f"{where}: expected an object, found {_name(data)}")
        return {key: _value(arguments[1], each, f"{where}.{key}", ignore) for key, each in data.items()}
    return _scalar(kind, data, where)


def _union(kinds: tuple[Any, ...], data: Any, where: str, ignore: bool) -> Any:
    if data is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _value(kind, data, where, ignore)
            except SchemaError as error:
                errors.append(str(error))
    raise SchemaError(" or ".join(errors))


def _scalar(kind: Any, data: Any, where: str) -> Any:
    # JSON has one kind of number: 1 is a float as well. True is an int in Python, and not a number here.
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if type(data) is not kind:
        expected = "null" if kind is type(None) else kind.__name__
        raise SchemaError(f"{where}: expected {expected}, found {_name(data)}")
    return data


def _name(data: object) -> str:
    return "null" if data is None else type(data).__name__
