"""Ask a machine all questions with one shell script, through Prometheus or without it."""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from minipc.checks.probes import ingress_port
from minipc.checks.schema import Check
from minipc.config import Settings
from minipc.config.service import Service
from minipc.core.formatting import one_line
from minipc.core.ports import MONITORING
from minipc.remote import psql
from minipc.services.queues import queues

Source = Literal["prometheus", "machine", "outside"]

PROMETHEUS = f"http://127.0.0.1:{MONITORING['prometheus']}"
PATIENCE_S = 5
# Of one question. A service that answers more than this is not listened to any further.
MOST_READINGS = 200
LONGEST_NAME = 80
MOST_BYTES = 50_000


@dataclass(frozen=True)
class Reading:
    """One value. `name` is the measured thing; it is empty if there is only one."""

    name: str
    value: float


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        readings: the values; empty if the question could not be answered.
        source: where the answer comes from.
        error: why there are no readings; empty if there are some, or if having none is normal.
    """

    check: Check
    readings: tuple[Reading, ...]
    source: Source
    error: str = ""

    @property
    def bad(self) -> tuple[Reading, ...]:
        """Return the readings that make the answer a no."""
        return tuple(reading for reading in self.readings if self.check.is_bad(reading.value))

    @property
    def unknown(self) -> bool:
        """Return True if the question could not be answered."""
        return bool(self.error)


def prelude(settings: Settings) -> str:
    """Return the shell functions that `direct` may use."""
    services = settings.services.declared
    values = {
        "REDIS_PORT": settings.redis.port,
        # Certificates of an authority that only this network knows.
        "TLS": "--insecure" if settings.edge.acme in ("internal", "other") else "",
        "PATIENCE": PATIENCE_S,
        "SERVICES": _table(_front(service) for service in services if service.ingress),
        "QUEUES": _table((queue.service, queue.port) for queue in queues(settings)),
        "PAGES": _table(_page(service, name) for service in services for name in service.alerts.pages),
    }
    assignments = "\n".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items())
    return f"{assignments}\n{_FUNCTIONS}"


def _table(rows: Iterable[Sequence[object]]) -> str:
    """Return one line for each row; no value may contain a tab, but the last."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def _front(service: Service) -> tuple[object, ...]:
    """Return name, domain, port of the ingress, port, paths, limit in seconds, and which statuses are an answer."""
    assert service.ingress  # noqa: S101 - the caller asks for services with an ingress only
    assert service.health  # noqa: S101 - which the schema demands then
    limit = service.alerts.answer_within_ms / 1000
    statuses = "any" if service.ingress.authentication else "200"
    health = service.health
    ports = ingress_port(service), service.ingress.node_port
    return service.name, service.domain, *ports, health.live, health.ready, limit, statuses


def _page(service: Service, name: str) -> tuple[object, ...]:
    """Return service, domain, port of the ingress, name, whether it has an alert, path, what to refuse (or "-")."""
    page, alert = service.alerts.pages[name], "yes" if service.alerts.pages[name].alert else "no"
    return service.name, service.domain, ingress_port(service), name, alert, page.path, page.refuse or "-"


_FUNCTIONS = r"""
tab=$(printf '\t')
request() {
    # VIA DOMAIN PORT PATH: body and, on the last line, status and seconds
    case $1 in
        ingress) set -- "https://$2:$3$4" --resolve "$2:$3:127.0.0.1" $TLS ;;
        direct) set -- "http://127.0.0.1:$3$4" --header "Host: $2" --header "X-Forwarded-Proto: https" ;;
    esac
    curl --silent --noproxy '*' --max-time "$PATIENCE" --write-out '\n%{http_code} %{time_total}\n' "$@" |
        tail -c 100000
}
answered() {
    # VIA DOMAIN PORT PATH STATUSES REFUSE: whether it answers as it should
    body=$(request "$1" "$2" "$3" "$4" | tr -d '\000')
    last=$(printf '%s' "$body" | tail -n 1)
    case $5:${last%% *} in 200:200 | any:[1234]??) ;; *) return 1 ;; esac
    [ "$6" = - ] || ! printf '%s' "$body" | grep -qP -e "$6"
}
asked() {
    # As the alerts: one failure is none.
    if answered "$@" || { sleep 1; answered "$@"; }; then echo 1; else echo 0; fi
}
probes() {
    printf '%s' "$SERVICES" | { while IFS=$tab read -r name domain port direct live ready limit statuses; do
        [ "$2" = live ] && path=$live || path=$ready
        [ "$1" = ingress ] || { port=$direct; statuses=200; }
        echo "$name $(asked "$1" "$domain" "$port" "$path" "$statuses" -)" &
    done; wait; } | sort
}
pages() {
    printf '%s' "$PAGES" | { while IFS=$tab read -r service domain port name alert path refuse; do
        [ "$alert" = no ] || echo "$service/$name $(asked ingress "$domain" "$port" "$path" 200 "$refuse")" &
    done; wait; } | sort
}
page() {
    # NAME of the service whose question it is
    printf '%s' "$PAGES" | while IFS=$tab read -r service domain port name alert path refuse; do
        if [ "$service/$name" = "$SERVICE/$1" ]; then asked ingress "$domain" "$port" "$path" 200 "$refuse"; fi
    done
}
queues() {
    printf '%s' "$QUEUES" | while IFS=$tab read -r name port; do
        redis-cli -p "$port" ping 2>&1 | grep -qE 'PONG|NOAUTH' && echo "$name 1" || echo "$name 0"
    done
}
durations() {
    # In multiples of the limit; the best of five, as the other questions are asked at the same time.
    printf '%s' "$SERVICES" | { while IFS=$tab read -r name domain port direct live ready limit statuses; do
        { for _ in 1 2 3 4 5; do request ingress "$domain" "$port" "$ready" | tail -n 1; done |
            sort -k 2 -n | head -n 1 | awk -v name="$name" -v limit="$limit" '{print name, $2 / limit}'; } &
    done; wait; } | sort
}
measured() {
    python3 /usr/local/lib/minipc/measure-services /etc/minipc/measure-services.json --print "$1"
}
query() {
    printf '%s\n' "$1" | PGCONNECT_TIMEOUT=3 timeout "$PATIENCE" sh -c "$PSQL"
}
"""


def script_for_machine(checks: Iterable[Check], settings: Settings) -> str:
    """Return a script that asks the machine itself, all questions in parallel: id, exit code, output (base64)."""
    asked = [check for check in checks if check.direct and check.asked_from == "machine"]
    lines = ["export LC_ALL=C.UTF-8", prelude(settings), "d=$(mktemp -d) && trap 'rm -rf $d' EXIT"]
    for number, check in enumerate(asked):
        own = f"SERVICE={shlex.quote(check.owner)}\nPSQL={shlex.quote(_psql(check.owner, settings))}"
        lines.append(f"( {own}\n{check.direct}\n) >$d/{number} 2>$d/{number}.error </dev/null & p_{number}=$!")
    for number, check in enumerate(asked):
        lines += [
            f"wait $p_{number}; code=$?",
            f"said=$(head -c {MOST_BYTES} $d/{number} | base64 -w0)",
            f'echo "{check.id} $code $said $(head -c 300 $d/{number}.error | base64 -w0)"',
        ]
    return "\n".join(lines) + "\n"


def _psql(owner: str, settings: Settings) -> str:
    """Return the psql command for a question: of a service in its database as its reader, else in our own database."""
    # Its tables are the service's: what answers may be a function of the service (minipc/remote/psql.py).
    service = settings.services.named(owner) if owner else None
    database = service.postgres.database if service and service.postgres else psql.OWN
    return psql.command(settings.postgres, database, "-F", " ", timeout_s=PATIENCE_S - 1)


def script_for_prometheus(checks: Iterable[Check]) -> str:
    """Return a script that asks Prometheus on the machine: it prints id, exit code and answer (base64) of each."""
    lines = []
    for check in checks:
        if check.expression:
            query = shlex.quote(f"query={check.expression}")
            curl = f"curl -sS --max-time {PATIENCE_S} --get --data-urlencode {query} {PROMETHEUS}/api/v1/query"
            lines.append(f'o=$({curl} 2>/dev/null); echo "{check.id} $? $(printf %s "$o" | base64 -w0) -"')
    return "\n".join(lines) + "\n"


def read_machine(printed: str, checks: Iterable[Check]) -> dict[str, Answer]:
    """Parse the output of `script_for_machine`; return the answers by id."""
    said = _lines(printed)
    return {check.id: _from_text(check, *said[check.id], "machine") for check in checks if check.id in said}


def read_prometheus(printed: str, checks: Iterable[Check]) -> dict[str, Answer]:
    """Parse the output of `script_for_prometheus`; return the answers by id, without unanswered questions."""
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
    """Return the answer to a check that was made from outside: lines `NAME VALUE`."""
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
    for line in text.splitlines()[:MOST_READINGS]:
        name, _, value = line.strip().rpartition(" ")
        try:
            number = float(value)
        except ValueError:
            continue
        if not math.isfinite(number):
            # It compares with nothing, and so would count as good.
            return Answer(check, (), source, f"the answer is no number: {one_line(line)[:LONGEST_NAME]}")
        readings.append(Reading(_shown(name), number))
    if readings:
        return Answer(check, tuple(readings), source)
    reason = one_line((error.strip().splitlines() or [f"no answer (exit code {code})"])[-1])
    return Answer(check, (), source, "" if check.no_data_after is None and not code else reason)


def _shown(name: str) -> str:
    """Return a name as it may be printed: a service chooses some of them, and could send a terminal's commands."""
    return one_line(name)[:LONGEST_NAME]


def _from_vector(check: Check, result: Sequence[Mapping[str, object]]) -> Answer:
    readings = []
    for sample in result:
        labels, point = sample["metric"], sample["value"]
        assert isinstance(labels, dict)  # noqa: S101 - Prometheus' format
        assert isinstance(point, list)  # noqa: S101
        readings.append(Reading(_shown(str(labels.get(check.each, ""))) if check.each else "", float(point[1])))
    missing = "" if readings or check.no_data_after is None else "Prometheus has no data"
    return Answer(check, tuple(sorted(readings, key=lambda reading: reading.name)), "prometheus", missing)
