"""Asks a machine's Loki, else its journal, the door's access log, and in K3s the files of the service's pods."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from minipc.errors import ConfigError, CouldNotVerifyError
from minipc.inventory import Target
from minipc.logs.entries import Entry
from minipc.remote import on

ACCESS_LOG = "/var/log/caddy/access.log"
PODS = "/var/log/pods"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SERVICE = re.compile(r"[A-Za-z0-9_.:@/-]{1,64}")
# TIME STREAM F|P MESSAGE, as the container runtime writes it.
_POD_LINE = re.compile(r"(\S+) (?:stdout|stderr) [FP] (.*)")
# The service's own names, and the units that the lab's stand-in logs from; in K3s they are pods.
_UNITS = {"api": "workload-api", "migrate": "workload-migrate"} | {
    worker: f"workload-worker@{worker}" for worker in ("ingest", "forecast", "push")
}
_PRIORITIES = ("error", "error", "error", "error", "warn", "info", "info", "debug")


@dataclass(frozen=True)
class Question:
    """What is asked for.

    Attributes:
        since_s: how far back, seconds.
        after_ns: only what is younger, nanoseconds since the epoch.
        logql: instead of request, service, level and text: answered by Loki only.
    """

    request_id: str | None = None
    service: str | None = None
    level: str | None = None
    text: str | None = None
    since_s: int = 3600
    limit: int = 1000
    after_ns: int = 0
    logql: str | None = None

    def __post_init__(self) -> None:
        if self.request_id is not None and not _REQUEST_ID.fullmatch(self.request_id):
            raise ConfigError(f"{self.request_id!r} is no request id", "copy it from the answer's X-Request-ID")
        if self.service is not None and not _SERVICE.fullmatch(self.service):
            raise ConfigError(f"{self.service!r} is no name of a service", "such as api, edge, postgres, ssh")

    def as_logql(self) -> str:
        """The question in LogQL."""
        if self.logql:
            return self.logql
        labels = [f'service="{self.service}"' if self.service else 'service=~".+"']
        labels += [f'level="{self.level}"'] if self.level else []
        parts = ["{" + ", ".join(labels) + "}"]
        parts += [f"|= {json.dumps(self.text, ensure_ascii=False)}"] if self.text else []
        parts += [f'| request_id="{self.request_id}"'] if self.request_id else []
        return " ".join(parts)


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        source: "Loki" or "the journal", which stands for the other files, too.
        why_not_loki: why Loki was not the source; empty when it was.
        numbers: of a query that counts: labels and value, instead of lines.
    """

    source: str
    entries: list[Entry] = field(default_factory=list)
    why_not_loki: str = ""
    numbers: list[tuple[str, str]] = field(default_factory=list)


def ask(target: Target, question: Question) -> Answer:
    """Loki's answer; that of journal and files where Loki is not there, or has nothing (yet) of a request.

    Raises:
        CouldNotVerifyError: the machine can't be reached; or only Loki could answer, and it is not there.
        ConfigError: Loki doesn't understand the query.
    """
    found = _ask_loki(target, question)
    if isinstance(found, Answer):
        if found.entries or found.numbers or not question.request_id or question.logql or question.after_ns:
            return found
        why = "Loki has nothing of this request"
    else:
        why = found
    if question.logql:
        raise CouldNotVerifyError(
            f"only Loki can answer a saved query: {why}", "`minipc logs --service NAME` asks the journal"
        )
    return Answer("the journal", _ask_journal(target, question), why_not_loki=why)


def _ask_loki(target: Target, question: Question) -> Answer | str:
    """Its answer, or why there is none."""
    settings = target.settings
    base = settings.syslog_ng.loki_url or f"http://127.0.0.1:{settings.loki.port}"
    start = str(question.after_ns) if question.after_ns else f"$(( $(date +%s) - {question.since_s} ))000000000"
    direction = "forward" if question.after_ns else "backward"
    command = (
        f"curl -sS --max-time 30 -w '\\n%{{http_code}}' --get {shlex.quote(base)}/loki/api/v1/query_range "
        f'--data-urlencode query@- -d "start={start}" -d "end=$(date +%s)999999999" '
        f"-d limit={question.limit} -d direction={direction} 2>&1 || true"
    )
    answer, _, code = on(target, command, stdin=question.as_logql(), timeout_s=60).rpartition("\n")
    if code == "400":
        raise ConfigError(f"Loki doesn't understand {question.as_logql()!r}: {answer.strip()}", "correct the query")
    if code != "200":
        return f"no Loki at {base} ({answer.strip().splitlines()[0] if answer.strip() else 'no answer'})"
    return _from_loki(json.loads(answer)["data"])


def _from_loki(data: dict[str, Any]) -> Answer:
    if data["resultType"] == "streams":
        entries = [
            Entry(int(value[0]), stream["stream"].get("service", ""), stream["stream"].get("level", ""), value[1])
            for stream in data["result"]
            for value in stream["values"]
        ]
        return Answer("Loki", sorted(entries))
    numbers = [
        (" ".join(f"{name}={value}" for name, value in sorted(series["metric"].items())), series["values"][-1][1])
        for series in data["result"]
    ]
    return Answer("Loki", numbers=sorted(numbers))


def _ask_journal(target: Target, question: Question) -> list[Entry]:
    wanted = question.request_id or question.text
    since = f"--since=@{question.after_ns // 10**9}" if question.after_ns else f"--since=-{question.since_s}s"
    options = ["-o", "json", "--no-pager", since]
    if not wanted:
        options += ["-n", str(question.limit)]
    if question.service:
        options += ["-u", _UNITS.get(question.service, question.service)]
    journal = f"journalctl {shlex.join(options)} --output-fields=MESSAGE,PRIORITY,_SYSTEMD_UNIT,_TRANSPORT"
    access = f"cat {ACCESS_LOG} 2>/dev/null"
    parts = {"edge": [access], None: [journal, access]}.get(question.service, [journal])
    if target.settings.workload.runtime == "k3s" and question.service in (None, *_UNITS):
        pods = _pods(question)
        parts = [pods] if question.service else [*parts, pods]
    # What is looked for travels through stdin: it is not in the machine's process list.
    if wanted:
        parts = [f'{part} | grep -F -- "$wanted"' for part in parts]
    tail = f" | tail -n {question.limit}"
    script = "IFS= read -r wanted; " + "; ".join(f"{{ {part}; }}{tail}" for part in parts) + "; true"
    lines = on(target, script, stdin=f"{wanted or ''}\n", timeout_s=120).splitlines()
    entries = sorted(entry for line in lines if (entry := _from_journal(line)) is not None)
    kept = [
        entry
        for entry in entries
        if entry.at_ns > question.after_ns and (question.level is None or entry.level == question.level)
    ]
    return kept[-question.limit :]


def _pods(question: Question) -> str:
    """Prints the logs of the service's pods, also of those that ended: their files, which need no cluster that runs."""
    files = f"{PODS}/workload_{question.service or '*'}-*/*/*.log"
    # In the machine's own time zone, as the container runtime writes it.
    since = f"@{question.after_ns // 10**9}" if question.after_ns else f"-{question.since_s} seconds"
    young = f"awk -v since=\"$(date --date={shlex.quote(since)} +%FT%T)\" '$1 >= since'"
    return f"cat {files} 2>/dev/null | {young} | sort"


def _from_pod(at: str, text: str) -> Entry | None:
    """A line of a pod's log, with the labels it would have in Loki."""
    moment = re.fullmatch(r"(.+?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", at)
    if not moment:
        return None
    try:
        seconds = int(datetime.fromisoformat(moment[1] + moment[3]).timestamp())
    except ValueError:
        return None
    at_ns = seconds * 10**9 + int((moment[2] or "").ljust(9, "0"))
    said = _said(text)
    return Entry(at_ns, str(said.get("service") or "workload"), _level(str(said.get("level") or "info")), text)


def _from_journal(line: str) -> Entry | None:
    """A line of `journalctl -o json`, of the access log, or of a pod's log."""
    if pod := _POD_LINE.fullmatch(line):
        return _from_pod(pod[1], pod[2])
    try:
        fields: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if "__REALTIME_TIMESTAMP" not in fields:
        at = fields.get("ts")
        return Entry(int(at * 1e9), "edge", str(fields.get("level", "")), line) if isinstance(at, int | float) else None
    text = fields.get("MESSAGE")
    if isinstance(text, list):  # not UTF-8: journalctl gives the bytes
        text = bytes(text).decode(errors="backslashreplace")
    service = "kernel" if fields.get("_TRANSPORT") == "kernel" else str(fields.get("_SYSTEMD_UNIT", ""))
    priority = str(fields.get("PRIORITY", "6"))
    level = _PRIORITIES[int(priority)] if priority in set("01234567") else "info"
    service = service.removesuffix(".service")
    said = _said(str(text or ""))
    return Entry(
        int(fields["__REALTIME_TIMESTAMP"]) * 1000,
        str(said.get("service") or service) if service.startswith("workload-") else service,
        _level(str(said.get("level") or level)),
        str(text or ""),
    )


def _said(text: str) -> dict[str, Any]:
    """What a JSON line says of itself."""
    try:
        found = json.loads(text) if text.startswith("{") else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _level(name: str) -> str:
    name = name.lower()
    if name in ("emerg", "alert", "crit", "critical", "err", "error", "fatal", "panic"):
        return "error"
    return {"warning": "warn", "warn": "warn", "debug": "debug"}.get(name, "info")
