"""The deploy of Grafana with an archive of its shape: the program in it is a test double that checks its files.

Grafana itself, where it is available, is checked by tests/verify/test_grafana.py.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehearsal import lab
from tests.lab.conftest import converge, on, run
from tests.verify.conftest import eventually

# Says what Grafana would need to find: its own folder, its configuration, the password, the provisioned files.
STAND_IN = """#!/usr/bin/python3
import configparser, http.server, json, pathlib, sys

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:])
ini = configparser.ConfigParser(interpolation=None)
ini.read(options["config"])
provisioning = pathlib.Path(ini["paths"]["provisioning"])
password = pathlib.Path(ini["security"]["admin_password"].removeprefix("$__file{").removesuffix("}"))
pathlib.Path(ini["paths"]["data"], "written").write_text("x")
found = {
    "command": sys.argv[1],
    "home": pathlib.Path(options["homepath"], "public").is_dir(),
    "anonymous": ini["auth.anonymous"].getboolean("enabled"),
    "password": len(password.read_text()),
    "provisioned": sorted(str(path.relative_to(provisioning)) for path in provisioning.rglob("*.yaml")),
    "home_dashboard": json.loads(pathlib.Path(ini["dashboards"]["default_home_dashboard_path"]).read_text())["uid"],
}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

http.server.HTTPServer((ini["server"]["http_addr"], int(ini["server"]["http_port"])), Handler).serve_forever()
"""


def archive(path: Path) -> Path:
    """Build a tar.gz with the publisher's layout: one folder, named after the version."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content, mode in (
            ("bin/grafana", STAND_IN, 0o755),
            ("public/index.html", "", 0o644),
            ("conf/defaults.ini", "", 0o644),
        ):
            member = tarfile.TarInfo(f"grafana-13.2.3/{name}")
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content.encode()))
    return path


@pytest.fixture
def offered(site: lab.Machine, tmp_path) -> Iterator[dict[str, str]]:
    """Return the environment of a controller that has the archive. Remove Grafana afterwards."""
    if on(site, "systemctl cat grafana >/dev/null 2>&1 && echo yes || true").strip():
        pytest.skip("NOT EXERCISED: the machine has Grafana itself; tests/verify checks that")
    cache = {"MINIPC_CACHE_DIR": str(tmp_path / "cache")}
    argv = ["artifacts", "add", "grafana", str(archive(tmp_path / "grafana.tar.gz")), "--version", "stand-in"]
    added = run("minipc", *argv, "--arch", "amd64", env=cache)
    assert added.code == 0, added.output
    try:
        yield cache
    finally:
        on(site, "systemctl disable --now grafana 2>/dev/null; rm -rf /etc/systemd/system/grafana.service /etc/grafana")
        on(
            site,
            "rm -rf /usr/local/lib/minipc/grafana /var/lib/minipc/artifacts/*grafana /var/lib/minipc/stamps/grafana*",
        )
        on(site, "rm -rf /var/lib/grafana; userdel grafana; systemctl daemon-reload")


def test_what_is_placed_is_what_grafana_needs(site: lab.Machine, offered: dict[str, str]) -> None:
    done = converge(site, "grafana", env=offered)
    assert done.code == 0, done.output
    ask = "curl -s --max-time 5 http://127.0.0.1:3000/ || true"
    answer = eventually(lambda: on(site, ask), within_s=30)
    assert answer, on(site, "journalctl -u grafana -n 20 --no-pager")
    found = json.loads(answer)
    assert found.pop("password") >= 20
    assert found == {
        "command": "server",
        "home": True,
        "anonymous": False,
        "provisioned": ["dashboards/minipc.yaml", "datasources/minipc.yaml"],
        "home_dashboard": "minipc-questions",
    }
    assert on(site, "stat -c '%U %a' /etc/grafana/admin_password").strip() == "grafana 600"
    exposure = on(site, "systemd-analyze security --no-pager grafana | grep 'Overall exposure'")
    assert float(exposure.split(": ")[1].split()[0]) < 2.5

    again = converge(site, "grafana", env=offered)
    assert again.code == 0, again.output
    counted = [line.split() for line in again.output.splitlines() if line.strip().startswith("Grand total")]
    assert counted, again.output
    assert counted[0][3] == "-", f"the second converge changed something: {again.output}"
