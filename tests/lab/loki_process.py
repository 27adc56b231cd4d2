"""Run a real Loki on this controller, with the configuration of the machine. NOT EXERCISED without the artifact."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from minipc.artifacts import own_arch, resolve
from minipc.config.load import group_data
from minipc.config.schema import LokiSettings
from minipc.pyinfra_ext.operations.files import File, render


def program(folder: Path) -> Path:
    """Return the binary, unpacked from the cache."""
    found = resolve("loki", own_arch(), fetch=False)
    if found.path is None:
        pytest.skip(f"NOT EXERCISED: {found}")
    with zipfile.ZipFile(found.path) as archive:
        (name,) = [name for name in archive.namelist() if name.startswith("loki-linux-")]
        path = Path(archive.extract(name, folder))
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Loki:
    """A Loki that can be stopped and started again with the same data."""

    binary: Path
    data: Path
    hurried: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def configure(self) -> Path:
        """Return the machine's configuration with other paths and ports; `hurried` replaces text in it."""
        prefix = "loki_"
        values = {key.removeprefix(prefix): value for key, value in group_data("lab").items() if key.startswith(prefix)}
        settings = LokiSettings(**values | {"port": self.port, "grpc_port": free_port()})
        file = render("loki", File("loki.yaml.j2", ""), {"loki": settings, "data": str(self.data)})
        assert isinstance(file, File)
        text = (file.content or b"").decode()
        for slow, fast in self.hurried.items():
            assert slow in text
            text = text.replace(slow, fast)
        path = self.data.parent / "loki.yaml"
        path.write_text(text)
        return path

    def start(self) -> None:
        self.data.mkdir(exist_ok=True)
        bound = self.data / "bound.yaml"
        if not bound.exists():
            bound.write_text("overrides: {}\n")
        argv = [str(self.binary), f"-config.file={self.configure()}"]
        with (self.data.parent / "loki.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.data.parent / "loki.log").read_text()[-2000:]
            try:
                if self.request("/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError("not ready within 90 s")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=60)
            self.process = None

    def request(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def push(self, *messages: tuple[str, str, float]) -> None:
        """Push messages: service, line and time (epoch seconds) of each."""
        streams = [
            {"stream": {"service": service, "level": "info"}, "values": [[str(int(at * 1e9)), line]]}
            for service, line, at in messages
        ]
        assert self.request("/loki/api/v1/push", {"streams": streams}) == (204, "")

    def lines(self, logql: str, days: float = 31) -> list[str]:
        """Return the lines that a query finds."""
        start = int((time.time() - days * 86400) * 1e9)
        query = {"query": logql, "start": start, "limit": 5000, "direction": "forward"}
        code, answer = self.request("/loki/api/v1/query_range?" + urlencode(query))
        assert code == 200, answer
        return [value[1] for stream in json.loads(answer)["data"]["result"] for value in stream["values"]]

    def chunks(self) -> int:
        """Return the number of chunks on disk."""
        return sum(path.is_file() for path in (self.data / "chunks" / "fake").rglob("*"))


@contextmanager
def running(folder: Path, hurried: dict[str, str] | None = None) -> Iterator[Loki]:
    """Run a Loki with its data below the folder."""
    loki = Loki(program(folder), folder / "data", hurried or {})
    try:
        loki.start()
        yield loki
    finally:
        loki.stop()
