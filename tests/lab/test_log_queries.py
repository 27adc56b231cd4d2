"""Test the saved queries against a real Loki that contains matching and other messages."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlencode

import pytest

from minipc.config import load
from minipc.logs.queries import SavedQuery, saved_queries
from tests.lab.loki_process import Loki, running
from tests.verify.conftest import eventually

# With those of the example.
QUERIES = saved_queries(load("lab").services.declared)


@pytest.fixture(scope="module")
def loki(tmp_path_factory):
    with running(tmp_path_factory.mktemp("loki")) as found:
        streams = [_stream(query) for query in QUERIES.values()]
        streams.append(_of("api", "info", "nothing to see", {}))
        streams.append(_of("edge", "info", '{"request":{"uri":"/"},"duration":0.01,"status":200}', {}))
        assert found.request("/loki/api/v1/push", {"streams": streams}) == (204, "")
        eventually(lambda: len(found.lines('{service=~".+"}')) == len(streams), within_s=10)
        yield found


def _stream(query: SavedQuery) -> dict[str, Any]:
    metadata = {"request_id": query.sample.request_id} if query.sample.request_id else {}
    found = _of(query.sample.service, query.sample.level, query.sample.line, metadata)
    if query.sample.process:
        found["stream"]["process"] = query.sample.process
    return found


def _of(service: str, level: str, line: str, metadata: dict[str, str]) -> dict[str, Any]:
    labels = {"service": service, "level": level}
    return {"stream": labels, "values": [[str(time.time_ns()), line, metadata]]}


@pytest.mark.parametrize("query", QUERIES.values(), ids=lambda query: query.name)
def test_a_query_finds_only_its_sample(loki: Loki, query):
    start = int((time.time() - 600) * 1e9)
    asked = {"query": query.filled(query.sample.request_id), "start": start, "limit": 100}
    code, answer = loki.request("/loki/api/v1/query_range?" + urlencode(asked))
    assert code == 200, answer
    data = json.loads(answer)["data"]
    if data["resultType"] == "matrix":
        assert {series["metric"]["service"] for series in data["result"]} == {query.sample.service}
        return
    found = [(stream["stream"]["service"], value[1]) for stream in data["result"] for value in stream["values"]]
    assert len(found) == 1, found
    assert found[0][0] == query.sample.service
    assert found[0][1] == query.sample.line or "line_format" in query.logql
