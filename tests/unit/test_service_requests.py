"""Requests of a service file: filled in, sent with curl, judged."""

from __future__ import annotations

import json

import pytest

from minipc.config.service import Request
from minipc.services import requests


def test_the_id_is_filled_in_everywhere():
    request = Request(method="PUT", path="/lots/{id}", body={"name": "{id}", "tags": ["x-{id}", 1]})
    prepared = requests.prepare(request, "a7")
    assert prepared.path == "/lots/a7"
    assert json.loads(prepared.body) == {"name": "a7", "tags": ["x-a7", 1]}
    assert prepared.headers == {"Content-Type": "application/json"}


def test_a_text_is_sent_as_it_is():
    prepared = requests.prepare(Request(method="POST", path="/", body="id={id}"), "7")
    assert (prepared.body, prepared.headers) == ("id=7", {})


def test_curl_reads_the_body_from_stdin_so_that_it_is_in_no_command_line():
    argv = requests.prepare(Request(method="POST", path="/a", body="secret")).curl("https://x", "--max-time", "5")
    assert "secret" not in " ".join(argv)
    assert argv[-1] == "https://x/a"
    assert "@-" in argv


@pytest.mark.parametrize(
    ("request_", "status", "body", "said"),
    [
        (Request(path="/a"), 200, "", ""),
        (Request(path="/a", status=201), 200, "made\nit", "GET /a answered 200, expected 201: made it"),
        (Request(path="/a"), 0, "timed out", "GET /a answered nothing, expected 200: timed out"),
        (Request(path="/a", contains="free"), 200, "all free", ""),
        (Request(path="/a", contains="free"), 200, "none", "the answer to GET /a does not contain 'free'"),
    ],
)
def test_an_answer_is_judged(request_, status, body, said):
    assert requests.problem(request_, status, body) == said


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody", (200, "body")),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/2 503 \r\n\r\n", (503, "")),
        ("curl: (7) refused", (0, "curl: (7) refused")),
        ("HTTP/nonsense", (0, "HTTP/nonsense")),
    ],
)
def test_the_answer_is_read_from_the_output_of_curl(text, answer):
    assert requests.read_answer(text) == answer
