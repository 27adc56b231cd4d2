"""The saved queries, asked to a real Loki that holds what each of them is about, and something else."""

from __future__ import annotations

import json
import time
from urllib.parse import urlencode

import pytest

from minipc.logs.queries import SavedQuery, saved_queries
from tests.lab.loki_process import Loki, running
from tests.verify.conftest import eventually


@pytest.fixture(scope="module")
def loki(tmp_path_factory):
    with running(tmp_path_factory.mktemp("loki")) as found:
        streams = [_stream(query) for query in saved_queries().values()]
        streams.append(_of("api", "info", "nothing to see", {}))
        streams.append(_of("edge", "info", '{"request":{"uri":"/"},"duration":0.01,"status":200}', {}))
        assert found.request("/loki/api/v1/push", {"streams": streams}) == (204, "")
        eventually(lambda: len(found.lines('{service=~".+"}')) == len(streams), within_s=10)
        yield found


def _stream(query: SavedQuery) -> dict[str, object]:
    metadata = {"request_id": query.sample.request_id} if query.sample.request_id else {}
    return _of(query.sample.service, query.sample.level, query.sample.line, metadata)


def _of(service: str, level: str, line: str, metadata: dict[str, str]) -> dict[str, object]:
    labels = {"service": service, "level": level}
    return {"stream": labels, "values": [[str(time.time_ns()), line, metadata]]}


@pytest.mark.parametrize("query", saved_queries().values(), ids=lambda query: query.name)
def test_it_finds_its_sample_and_nothing_else(loki: Loki, query):
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
