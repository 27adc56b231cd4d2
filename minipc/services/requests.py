"""Requests of a service file: filled in, sent with curl, and judged. What a service answers is data, never trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from minipc.config.service import Request
from minipc.core.formatting import one_line

_ID = "{id}"
_SHOWN = 120


@dataclass(frozen=True)
class Prepared:
    """A request with its id filled in.

    Attributes:
        headers: by name; a JSON body brings its Content-Type along.
        body: empty if there is none.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: str

    def curl(self, base: str, *options: str) -> list[str]:
        """Return the curl command that sends it. The body is read from stdin.

        Args:
            base: scheme, host and port, such as "https://shop.example.org".
            options: more options of curl.
        """
        argv = [
            "curl",
            "--silent",
            "--show-error",
            "--include",
            "--noproxy",
            "*",
            "--path-as-is",
            "--header",
            "Expect:",
        ]
        argv += ["--head"] if self.method == "HEAD" else ["--request", self.method]
        for name, value in self.headers.items():
            argv += ["--header", f"{name}: {value}"]
        argv += ["--data-binary", "@-"] if self.body else []
        return [*argv, *options, f"{base}{self.path}"]


def prepare(request: Request, id_: str = "0") -> Prepared:
    """Return the request with `{id}` replaced in its path and body."""
    headers = dict(request.headers)
    body = request.body
    if isinstance(body, dict | list):
        headers = {"Content-Type": "application/json"} | headers
        body = json.dumps(_filled(body, id_))
    elif body:
        body = body.replace(_ID, id_)
    return Prepared(request.method, request.path.replace(_ID, id_), headers, body or "")


def _filled(value: object, id_: str) -> object:
    """Return a JSON value with `{id}` replaced in all its texts."""
    if isinstance(value, str):
        return value.replace(_ID, id_)
    if isinstance(value, dict):
        return {str(key): _filled(each, id_) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, id_) for each in value]
    return value


def problem(request: Request, status: int, body: str) -> str:
    """Return what is wrong with an answer, one line; empty if it is the expected one."""
    if status != request.status:
        said = one_line(body)[:_SHOWN]
        return f"{request.method} {request.path} answered {status or 'nothing'}, expected {request.status}: {said}"
    if request.contains is not None and request.contains not in body:
        return f"the answer to {request.method} {request.path} does not contain {request.contains!r}"
    return ""


def read_answer(text: str) -> tuple[int, str]:
    """Return status and body from the output of `curl --include`; status 0 and the text if there is no answer."""
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    words: Sequence[str] = head.split(maxsplit=2)
    if not head.startswith("HTTP/") or len(words) < 2 or not words[1].isdigit():
        return 0, text
    if words[1].startswith("1"):  # 100 Continue, 103 Early Hints
        return read_answer(body)
    return int(words[1]), body
