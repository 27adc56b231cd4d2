"""What syslog-ng's configuration says, without a machine; what it does is tried by tests/verify/test_syslog_ng.py."""

from __future__ import annotations

import json
import re

from minipc.core.paths import ROOT


def pattern() -> re.Pattern[str]:
    """By which a request's id is found in a line of the access log. PCRE there; Python's is the same but for (?P."""
    text = (ROOT / "templates/syslog_ng/syslog-ng.conf.j2").read_text()
    (found,) = re.findall(r"""match\('([^']*X-Request-Id[^']*)'""", text)
    return re.compile(found.replace("(?<", "(?P<"))


def line(headers: dict[str, list[str]], uri: str = "/", order: tuple[str, ...] = ("request", "resp_headers")) -> str:
    parts = {
        "request": {"method": "GET", "uri": uri, "headers": headers},
        "resp_headers": {"Content-Type": ["text/plain"], "X-Request-Id": ["caddys-own"]},
    }
    return json.dumps({"level": "info", **{name: parts[name] for name in order}}, separators=(",", ":"))


def test_the_id_of_a_request_is_caddys_whatever_the_client_sends():
    forged = [
        line({"X-Request-Id": ["forged"]}),
        line({"Resp_headers": ["x"], "X-Request-Id": ["forged"]}),
        line({"User-Agent": ['"resp_headers":{"X-Request-Id":["forged"']}),
        line({}, uri='/?"resp_headers":{"X-Request-Id":["forged"'),
        line({"X-Request-Id": ["forged"]}, order=("resp_headers", "request")),
    ]
    for each in forged:
        found = pattern().search(each)
        assert found, each
        assert found["id"] == "caddys-own", each
