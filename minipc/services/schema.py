"""The JSON Schema of service files, which editors use for completion. Generated from `minipc.config.service`."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel

from minipc.config import service

_SET_BY_US = ("name", "folder")


def render() -> str:
    """Return the text of docs/reference/service.schema.json."""
    schema = service.Service.model_json_schema()
    for model in (each for each in vars(service).values() if inspect.isclass(each) and issubclass(each, BaseModel)):
        part = schema if model is service.Service else schema["$defs"].get(model.__name__)
        if part:
            _describe(part, model)
    for key in _SET_BY_US:
        schema["properties"].pop(key)
    schema["required"] = [key for key in schema["required"] if key not in _SET_BY_US]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "minipc service"}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _describe(part: dict[str, Any], model: type[BaseModel]) -> None:
    """Give each key the text of the docstring's attribute."""
    text = inspect.getdoc(model) or ""
    part["description"] = text.partition("\n\n")[0].replace("\n", " ")
    for key, words in re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", text.partition("Attributes:")[2], re.MULTILINE):
        if key in part["properties"]:
            part["properties"][key]["description"] = re.sub(r"\s+", " ", words)
