"""How the questions are put to a machine: one shell script for all of them, by way of Prometheus or without it."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minipc.checks.schema import Check
from minipc.config import Settings
from minipc.ports import MONITORING

Source = Literal["prometheus", "machine", "outside"]

PROMETHEUS = f"http://127.0.0.1:{MONITORING['prometheus']}"
PATIENCE_S = 5


@dataclass(frozen=True)
class Reading:
    """One value: of one thing that is asked about, or of the only one (`name` is empty then)."""

    name: str
    value: float


@dataclass(frozen=True)
class Answer:
    """What became of a question.

    Attributes:
        readings: none when it could not be answered.
        source: who answered.
        error: why there are no readings; empty when there are, or when having none is fine.
    """

    check: Check
    readings: tuple[Reading, ...]
    source: Source
    error: str = ""

    @property
    def bad(self) -> tuple[Reading, ...]:
        """The readings that make the answer a no."""
        return tuple(reading for reading in self.readings if self.check.is_bad(reading.value))

    @property
    def unknown(self) -> bool:
        """Whether it could not be answered."""
        return bool(self.error)


def prelude(settings: Settings) -> str:
    """The shell functions that `direct` may use."""
    values = {
        "DOMAIN": settings.edge.domain,
        "API_PORT": settings.workload.port,
        "PG_PORT": settings.postgres.port,
        "DATABASE": settings.postgres.databases[0].name,
        "REDIS_PORT": settings.redis.port,
        "WORKERS": " ".join(settings.workload.metrics_ports),
        # Certificates of an authority that only this network knows.
        "TLS": "--insecure" if settings.edge.acme in ("internal", "other") else "",
        "RUNTIME": settings.workload.runtime,
        "PATIENCE": PATIENCE_S,
    }
    assignments = "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items())
    ports = "".join(f" {name}) echo {port} ;;" for name, port in settings.workload.metrics_ports.items())
    return f"{assignments}\nport_of() {{ case $1 in{ports} esac; }}\n{_FUNCTIONS}"


_FUNCTIONS = r"""
get() {
    case $1 in
        edge | fresh) set -- "https://$DOMAIN$2" --resolve "$DOMAIN:443:127.0.0.1" $TLS ;;
        api) set -- "http://127.0.0.1:$API_PORT$2" ;;
        worker)
            if [ "$RUNTIME" = k3s ]; then
                k3s kubectl -n workload get pods -l "app.kubernetes.io/component=$2" \
                    --field-selector status.phase=Running --no-headers 2>/dev/null | grep -E ' ([1-9][0-9]*)/\1 '
                return
            fi
            set -- "http://127.0.0.1:$(port_of "$2")/metrics"
            ;;
    esac
    curl --silent --fail --noproxy '*' --max-time "$PATIENCE" "$@"
}
answers() {
    # As the alerts: one failure is none.
    body=$(get "$@") || { sleep 1; body=$(get "$@"); } || { echo 0; return; }
    case $1:$body in fresh:*'"status":"stale"'*) echo 0 ;; *) echo 1 ;; esac
}
took() {
    # The best of five: the other questions are asked at the same time.
    for _ in 1 2 3 4 5; do
        curl --silent --noproxy '*' --max-time "$PATIENCE" --output /dev/null --write-out '%{time_total}\n' \
            --resolve "$DOMAIN:443:127.0.0.1" $TLS "https://$DOMAIN$2"
    done | sort -n | head -1
}
query() {
    cd / && PGCONNECT_TIMEOUT=3 PGOPTIONS='-c statement_timeout=4000' timeout "$PATIENCE" \
        runuser -u postgres -- psql -XAtq -F ' ' -p "$PG_PORT" -d "$DATABASE" -c "$1"
}
"""


def script_for_machine(checks: Iterable[Check], settings: Settings) -> str:
    """Asks the machine itself, all questions at once; prints lines of id, exit code and what was said, in base64."""
    asked = [check for check in checks if check.direct and check.asked_from == "machine"]
    lines = ["export LC_ALL=C.UTF-8", prelude(settings), "d=$(mktemp -d) && trap 'rm -rf $d' EXIT"]
    for check in asked:
        lines.append(f"( {check.direct}\n) >$d/{check.id} 2>$d/{check.id}.error </dev/null & p_{_variable(check)}=$!")
    for check in asked:
        name = check.id
        lines += [
            f"wait $p_{_variable(check)}; code=$?",
            f'echo "{name} $code $(base64 -w0 $d/{name}) $(head -c 300 $d/{name}.error | base64 -w0)"',
        ]
    return "\n".join(lines) + "\n"


def _variable(check: Check) -> str:
    return check.id.replace("-", "_")


def script_for_prometheus(checks: Iterable[Check]) -> str:
    """Asks Prometheus on the machine; prints lines of id, curl's exit code and the answer, in base64."""
    lines = []
    for check in checks:
        if check.expression:
            query = shlex.quote(f"query={check.expression}")
            curl = f"curl -sS --max-time {PATIENCE_S} --get --data-urlencode {query} {PROMETHEUS}/api/v1/query"
            lines.append(f'o=$({curl} 2>/dev/null); echo "{check.id} $? $(printf %s "$o" | base64 -w0) -"')
    return "\n".join(lines) + "\n"


def read_machine(printed: str, checks: Iterable[Check]) -> dict[str, Answer]:
    """What `script_for_machine` printed, by question."""
    said = _lines(printed)
    return {check.id: _from_text(check, *said[check.id], "machine") for check in checks if check.id in said}


def read_prometheus(printed: str, checks: Iterable[Check]) -> dict[str, Answer]:
    """What `script_for_prometheus` printed, by question; without those where Prometheus did not answer."""
    said = _lines(printed)
    found = {}
    for check in checks:
        code, text, _ = said.get(check.id, (1, "", ""))
        try:
            answer = json.loads(text)
        except ValueError:
            continue
        if code == 0 and answer.get("status") == "success":
            found[check.id] = _from_vector(check, answer["data"]["result"])
    return found


def read_outside(check: Check, printed: str) -> Answer:
    """An answer from where users are: `VALUE`."""
    return _from_text(check, 0, printed, "", "outside")


def _lines(printed: str) -> dict[str, tuple[int, str, str]]:
    found = {}
    for line in printed.splitlines():
        fields = [*line.split(" "), "", ""]
        if len(fields) >= 5 and fields[1].isdigit():
            text, error = (base64.b64decode(field.strip("-")).decode(errors="replace") for field in fields[2:4])
            found[fields[0]] = int(fields[1]), text, error
    return found


def _from_text(check: Check, code: int, text: str, error: str, source: Source) -> Answer:
    readings = []
    for line in text.splitlines():
        name, _, value = line.strip().rpartition(" ")
        try:
            readings.append(Reading(name.strip(), float(value)))
        except ValueError:
            continue
    if readings:
        return Answer(check, tuple(readings), source)
    reason = (error.strip().splitlines() or [f"no answer (exit code {code})"])[-1]
    return Answer(check, (), source, "" if check.no_data_after is None and not code else reason)


def _from_vector(check: Check, result: Sequence[Mapping[str, object]]) -> Answer:
    readings = []
    for sample in result:
        labels, point = sample["metric"], sample["value"]
        assert isinstance(labels, dict)  # noqa: S101 - Prometheus' format
        assert isinstance(point, list)  # noqa: S101
        readings.append(Reading(str(labels.get(check.each, "")) if check.each else "", float(point[1])))
    missing = "" if readings or check.no_data_after is None else "Prometheus has no data"
    return Answer(check, tuple(sorted(readings, key=lambda reading: reading.name)), "prometheus", missing)
