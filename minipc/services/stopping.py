"""Stop a service while its data is replaced, and start it again: the migration first. Where it was released only."""

from __future__ import annotations

import shlex

from minipc.config.service import Migration, Process, Service
from minipc.services.environment import MIGRATE, programs
from minipc.services.manifests import podman_name

# The replicas are kept in an annotation, so that a start after an interruption knows them.
_REPLICAS = "minipc.local/replicas"
_K3S_STOP = """
set -eu
kubectl() { k3s kubectl --namespace SERVICE "$@"; }
found=$(kubectl get deployments,statefulsets -o name)
[ -n "$found" ] || exit 0
echo stopped
for each in $(kubectl get cronjobs -o name); do kubectl patch "$each" -p '{"spec":{"suspend":true}}' >/dev/null; done
kubectl delete jobs --all --cascade=foreground --timeout=60s >/dev/null
for each in $found; do
    number=$(kubectl get "$each" -o 'jsonpath={.spec.replicas}')
    [ "$number" = 0 ] || kubectl annotate --overwrite "$each" REPLICAS="$number" >/dev/null
    kubectl scale "$each" --replicas=0 >/dev/null
done
kubectl wait --for=delete pods --all --timeout=120s >/dev/null
"""
_K3S_START = r"""
set -eu
kubectl() { k3s kubectl --namespace SERVICE "$@"; }
if [ LIMIT != 0 ]; then
    kubectl delete job import-migrate --ignore-not-found >/dev/null
    kubectl create job import-migrate --from=cronjob/migrate >/dev/null
    state=
    for second in $(seq LIMIT); do
        state=$(kubectl get job import-migrate -o 'jsonpath={.status.conditions[?(@.status=="True")].type}')
        case "$state" in *Complete*|*Failed*) break;; esac
        sleep 1
    done
    case "$state" in
        *Complete*) kubectl delete job import-migrate >/dev/null;;
        *) kubectl logs job/import-migrate --tail=20 >&2; exit 1;;
    esac
fi
for each in $(kubectl get cronjobs -o name); do
    [ "$each" = cronjob.batch/migrate ] || kubectl patch "$each" -p '{"spec":{"suspend":false}}' >/dev/null
done
for each in $(kubectl get deployments,statefulsets -o name); do
    number=$(kubectl get "$each" -o 'jsonpath={.metadata.annotations.minipc\.local/replicas}')
    [ -z "$number" ] || kubectl scale "$each" --replicas="$number" >/dev/null
    kubectl annotate "$each" REPLICAS- >/dev/null
done
"""


# One after the other, as a converge does.
_EACH = "each() { action=$1; shift; for unit; do systemctl $action $unit || return 1; done; }; each"


def stop_script(service: Service, runtime: str) -> str:
    """Return the shell script that stops all parts of a service, and prints "stopped" if it was released here."""
    if runtime == "k3s":
        return _K3S_STOP.replace("SERVICE", shlex.quote(service.name)).replace("REPLICAS", _REPLICAS)
    timers, units, first = _units(service)
    if not first:
        return "true"
    return f"systemctl cat {first} >/dev/null 2>&1 || exit 0; echo stopped; {_EACH} stop {timers} {units}"


def start_script(service: Service, runtime: str) -> str:
    """Return the shell script that migrates the database of a service that was stopped, and starts all its parts."""
    if runtime == "k3s":
        limit = str(service.migrate.time_limit_s if service.migrate else 0)
        script = _K3S_START.replace("SERVICE", shlex.quote(service.name)).replace("LIMIT", limit)
        return script.replace("REPLICAS", _REPLICAS)
    timers, units, _ = _units(service)
    migrate = f"{podman_name(service, MIGRATE)}.service"
    log = f"{{ journalctl -u {migrate} -n 20 -o cat --no-pager >&2; exit 1; }}"
    return f"{f'systemctl restart {migrate} || {log}; ' if service.migrate else ''}{_EACH} start {timers} {units}"


def _units(service: Service) -> tuple[str, str, str]:
    """Return the timers and the processes of a service under podman, and the first process; empty without one."""
    parts = programs(service)
    running = [f"{podman_name(service, name)}.service" for name, part in parts.items() if isinstance(part, Process)]
    once = [name for name, part in parts.items() if not isinstance(part, Process | Migration)]
    timers = [f"{podman_name(service, name)}.timer" for name in once]
    return shlex.join(timers), shlex.join(running), running[0] if running else ""
