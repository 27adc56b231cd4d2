"""Read logs from a machine's Loki, else from its journal, Caddy's access log and the log files of the pods."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from minipc.core.errors import ConfigError, CouldNotVerifyError
from minipc.logs.entries import Entry
from minipc.remote.inventory import Target
from minipc.remote.queries import on
from minipc.services.environment import programs
from minipc.services.manifests import podman_name

ACCESS_LOG = "/var/log/caddy/access.log"
PODS = "/var/log/pods"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SERVICE = re.compile(r"[A-Za-z0-9_.:@/-]{1,64}")
# SERVICE/PROCESS, then what the container runtime writes: TIME STREAM F|P MESSAGE.
_POD_LINE = re.compile(r"(\S+/\S+) (\S+) (?:stdout|stderr) [FP] (.*)")
_PRIORITIES = ("error", "error", "error", "error", "warn", "info", "info", "debug")


@dataclass(frozen=True)
class Question:
    """A search in the logs.

    Attributes:
        since_s: how far to search back, in seconds.
        service: a service, SERVICE/PROCESS for one of its processes or jobs, or a unit of the machine.
        after_ns: only entries after this time, nanoseconds since the epoch.
        logql: a query in place of request, service, level and text; only Loki can answer it.
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
            raise ConfigError(f"{self.request_id!r} is not a request id", "copy it from the header X-Request-ID")
        if self.service is not None and not _SERVICE.fullmatch(self.service):
            raise ConfigError(f"{self.service!r} is not a service name", "use a name such as edge or ssh")

    def as_logql(self) -> str:
        """Return the search in LogQL."""
        if self.logql:
            return self.logql
        name, _, process = (self.service or "").partition("/")
        labels = [f'service="{name}"' if name else 'service=~".+"']
        labels += [f'process="{process}"'] if process else []
        labels += [f'level="{self.level}"'] if self.level else []
        parts = ["{" + ", ".join(labels) + "}"]
        parts += [f"|= {json.dumps(self.text, ensure_ascii=False)}"] if self.text else []
        parts += [f'| request_id="{self.request_id}"'] if self.request_id else []
        return " ".join(parts)


@dataclass(frozen=True)
class Answer:
    """The result of a search.

    Attributes:
        source: "Loki" or "the journal" (which includes the log files).
        why_not_loki: why Loki was not the source; empty if it was.
        numbers: labels and value, if the query counts instead of finding lines.
    """

    source: str
    entries: list[Entry] = field(default_factory=list)
    why_not_loki: str = ""
    numbers: list[tuple[str, str]] = field(default_factory=list)


def ask(target: Target, question: Question) -> Answer:
    """Search Loki. Search journal and files if Loki is not available or has no line of the request (yet).

    Raises:
        CouldNotVerifyError: the machine cannot be reached; or only Loki could answer, and it is not available.
        ConfigError: the query is not valid LogQL.
    """
    found = _ask_loki(target, question)
    if isinstance(found, Answer):
        if found.entries or found.numbers or not question.request_id or question.logql or question.after_ns:
            return found
        why = "Loki has no line of this request"
    else:
        why = found
    if question.logql:
        raise CouldNotVerifyError(
            f"only Loki can answer a saved query: {why}", "use `minipc logs --service NAME` to search the journal"
        )
    return Answer("the journal", _ask_journal(target, question), why_not_loki=why)


def _ask_loki(target: Target, question: Question) -> Answer | str:
    """Return Loki's answer, or the reason why there is none."""
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
        raise ConfigError(f"Loki does not accept the query {question.as_logql()!r}: {answer.strip()}", "fix the query")
    if code != "200":
        return f"no Loki at {base} ({answer.strip().splitlines()[0] if answer.strip() else 'no answer'})"
    return _from_loki(json.loads(answer)["data"])


def _from_loki(data: dict[str, Any]) -> Answer:
    if data["resultType"] == "streams":
        entries = [
            Entry(int(value[0]), _said_by(stream["stream"]), stream["stream"].get("level", ""), value[1])
            for stream in data["result"]
            for value in stream["values"]
        ]
        return Answer("Loki", sorted(entries))
    numbers = [
        (" ".join(f"{name}={value}" for name, value in sorted(series["metric"].items())), series["values"][-1][1])
        for series in data["result"]
    ]
    return Answer("Loki", numbers=sorted(numbers))


def _said_by(labels: dict[str, str]) -> str:
    """Return the service, with its process if it has one."""
    return "/".join(filter(None, (labels.get("service", ""), labels.get("process", ""))))


def _ask_journal(target: Target, question: Question) -> list[Entry]:
    wanted = question.request_id or question.text
    since = f"--since=@{question.after_ns // 10**9}" if question.after_ns else f"--since=-{question.since_s}s"
    options = ["-o", "json", "--no-pager", since]
    if not wanted:
        options += ["-n", str(question.limit)]
    declared = target.settings.services.declared
    names = {podman_name(service, part): f"{service.name}/{part}" for service in declared for part in programs(service)}
    of_a_service = (question.service or "").partition("/")[0] in {service.name for service in declared}
    if of_a_service:
        wanted_names = (unit for unit, name in names.items() if f"{name}/".startswith(f"{question.service}/"))
        options += [option for unit in wanted_names for option in ("-t", unit)]
    elif question.service:
        options += ["-u", question.service]
    fields = "MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,_TRANSPORT"
    journal = f"journalctl {shlex.join(options)} --output-fields={fields}"
    access = f"cat {ACCESS_LOG} 2>/dev/null"
    parts = {"edge": [access], None: [journal, access]}.get(question.service, [journal])
    if target.settings.services.runtime == "k3s" and (of_a_service or question.service is None):
        parts = [_pods(question)] if of_a_service else [*parts, _pods(question)]
    # The searched text is passed on stdin, so that it is not in the machine's process list.
    if wanted:
        parts = [f'{part} | grep -F -- "$wanted"' for part in parts]
    tail = f" | tail -n {question.limit}"
    script = "IFS= read -r wanted; " + "; ".join(f"{{ {part}; }}{tail}" for part in parts) + "; true"
    lines = on(target, script, stdin=f"{wanted or ''}\n", timeout_s=120).splitlines()
    entries = sorted(entry for line in lines if (entry := _from_journal(line, names)) is not None)
    kept = [
        entry
        for entry in entries
        if entry.at_ns > question.after_ns and (question.level is None or entry.level == question.level)
    ]
    return kept[-question.limit :]


def _pods(question: Question) -> str:
    """Return a command that prints the logs of pods from their files, also without a running cluster."""
    service, _, process = (question.service or "").partition("/")
    # NAMESPACE_POD_UID/CONTAINER/N.log; a container has the name of the process.
    files = f"{PODS}/{service or '*'}_*/{process or '*'}/*.log"
    # The container runtime writes times in the machine's time zone.
    since = f"@{question.after_ns // 10**9}" if question.after_ns else f"-{question.since_s} seconds"
    by = 'n = split(FILENAME, path, "/"); split(path[n - 2], pod, "_"); print pod[1] "/" path[n - 1], $0'
    young = f"awk -v since=\"$(date --date={shlex.quote(since)} +%FT%T)\" '$1 >= since {{ {by} }}'"
    return f"{young} {files} 2>/dev/null | sort -k 2,2"


def _from_pod(said_by: str, at: str, text: str) -> Entry | None:
    """Parse a line of a pod's log; the labels are the same as in Loki."""
    moment = re.fullmatch(r"(.+?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", at)
    if not moment:
        return None
    try:
        seconds = int(datetime.fromisoformat(moment[1] + moment[3]).timestamp())
    except ValueError:
        return None
    at_ns = seconds * 10**9 + int((moment[2] or "").ljust(9, "0"))
    own = _json_fields(text)
    return Entry(at_ns, said_by, _level(str(own.get("level") or "info")), text)


def _from_journal(line: str, names: dict[str, str]) -> Entry | None:
    """Parse a line of `journalctl -o json`, of the access log, or of a pod's log.

    Args:
        names: identifiers of services under podman -> SERVICE/PROCESS.
    """
    if pod := _POD_LINE.fullmatch(line):
        return _from_pod(pod[1], pod[2], pod[3])
    try:
        fields: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if "__REALTIME_TIMESTAMP" not in fields:
        at = fields.get("ts")
        return Entry(int(at * 1e9), "edge", str(fields.get("level", "")), line) if isinstance(at, int | float) else None
    text = fields.get("MESSAGE")
    if isinstance(text, list):  # not UTF-8: journalctl prints the bytes
        text = bytes(text).decode(errors="backslashreplace")
    service = "kernel" if fields.get("_TRANSPORT") == "kernel" else str(fields.get("_SYSTEMD_UNIT", ""))
    priority = str(fields.get("PRIORITY", "6"))
    level = _PRIORITIES[int(priority)] if priority in set("01234567") else "info"
    service = service.removesuffix(".service")
    own = _json_fields(str(text or ""))
    return Entry(
        int(fields["__REALTIME_TIMESTAMP"]) * 1000,
        names.get(str(fields.get("SYSLOG_IDENTIFIER")), service),
        _level(str(own.get("level") or level)),
        str(text or ""),
    )


def _json_fields(text: str) -> dict[str, Any]:
    """Return the fields of a JSON line; empty if it is not one."""
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
