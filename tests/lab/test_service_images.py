"""Images of services, built and run for real on this computer: no machine is needed, but root and podman."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minipc import config
from minipc.config.services import read_file
from minipc.services import contract, images

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
EXAMPLES = Path(__file__).parents[2] / "examples"
# Answers on another port, redirects, or writes where it may not: one fault for each line of the contract.
APP = """\
import http.server, os, pathlib, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        redirected = self.path == "/redirected"
        self.send_response(302 if redirected else 200)
        if redirected:
            self.send_header("Location", "/login")
        self.end_headers()

if "write" in sys.argv:
    pathlib.Path("/opt/file").write_text("x")
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
CONTAINERFILE = """\
FROM localhost/debian:13
RUN apt-get update && apt-get install --yes --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
COPY app.py /opt/app.py
USER 10001
CMD ["python3", "/opt/app.py"]
"""
SERVICE = """\
image: minipc.local/broken
build: ../app
ingress: {domains: [broken.example.org], node_port: 30099}
processes: {web: {port: 8000}}
health: {live: /, ready: /, start_limit_s: 10}
"""

Outcomes = Callable[[Path], dict[str, str]]


@pytest.fixture
def outcomes(lab_ready: None) -> Outcomes:
    """Return the outcome of each check of a service's image."""

    def run(path: Path) -> dict[str, str]:
        service, lab = read_file(path), config.load("lab")
        settings = lab.model_copy(update={"services": lab.services.model_copy(update={"declared": (service,)})})
        image = images.ensure(service)
        assert isinstance(image, images.ServiceImage), image
        return {each.name: each.outcome + each.why for each in contract.check_image(settings, service, image)}

    return run


@pytest.mark.parametrize(
    "example", ["parkday/services/parkday.yaml", "node/services/flags.yaml", "django/services/wiki.yaml"]
)
def test_an_example_keeps_the_contract(outcomes: Outcomes, example: str) -> None:
    found = outcomes(EXAMPLES / example)
    assert set(found.values()) == {"passed"}
    assert len(found) >= 4


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("port: 8000", "port: 8001", "nothing listens there 10 s after its start"),
        ("ready: /", "ready: /redirected", "it redirects (302) to /login"),
        ("{port: 8000}", "{port: 8000, command: [python3, /opt/app.py, write]}", "Read-only file system"),
        ("{port: 8000}", "{port: 8000, command: [python3, /nothing]}", "No such file or directory"),
    ],
)
def test_what_breaks_the_contract_is_found(
    outcomes: Outcomes, tmp_path: Path, before: str, after: str, said: str
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/Containerfile").write_text(CONTAINERFILE)
    (tmp_path / "app/app.py").write_text(APP)
    (tmp_path / "services").mkdir()
    path = tmp_path / "services/broken.yaml"
    path.write_text(SERVICE.replace(before, after))
    failed = [why for why in outcomes(path).values() if why != "passed"]
    assert len(failed) == 1
    assert said in failed[0]
