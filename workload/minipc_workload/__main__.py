"""`python3 -m minipc_workload api | worker NAME | migrate | smoke | openapi`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys

from minipc_workload import WORKERS, logs, sentry, settings
from minipc_workload.errors import SettingsError

log = logging.getLogger("minipc_workload")


def main() -> int:
    """Runs one process of the service. Exit codes: 0 stopped or passed, 1 failed, 2 wrong settings or usage."""
    parser = argparse.ArgumentParser(prog="minipc_workload")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("api", help="serve HTTP")
    commands.add_parser("worker", help="run one worker").add_argument("name", choices=WORKERS)
    migrate = commands.add_parser("migrate", help="bring the database's schema to this version")
    migrate.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="first wait for the data stores")
    commands.add_parser("openapi", help="print the API's shape")
    smoke = commands.add_parser("smoke", help="check a running service as a user would notice")
    smoke.add_argument("--url", default=os.environ.get("SMOKE_URL") or "http://127.0.0.1:30080")
    smoke.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="repeat until it passes")
    arguments = parser.parse_args()

    if arguments.command == "smoke":
        return _smoke(arguments.url, arguments.wait)
    if arguments.command == "openapi":
        return _openapi()
    service = arguments.name if arguments.command == "worker" else arguments.command
    try:
        values = settings.load()
    except SettingsError as error:
        logs.configure(service)
        log.critical("service failed: %s", error)
        return 2
    logs.configure(service, values.log_level, values.secrets)
    sentry.start(values, service)
    try:
        return _run(arguments.command, service, values, getattr(arguments, "wait", 0.0))
    except Exception:
        log.critical("service failed", exc_info=True)
        return 1


def _run(command: str, service: str, values: settings.Settings, wait_s: float) -> int:
    # Imported here: each process loads only what it needs.
    if command == "api":
        from minipc_workload import api

        if not api.serve(values):
            log.critical("service failed: could not listen on %s:%d", values.api_host, values.api_port)
            return 1
    elif command == "worker":
        from minipc_workload import worker

        asyncio.run(worker.serve(service, values))
    else:
        from minipc_workload import migrate

        log.info("service started", extra={"version": values.version})
        if wait_s:
            migrate.wait_for_data(values, wait_s)
        migrate.upgrade(values)
        log.info("service stopped")
    return 0


def _openapi() -> int:
    from minipc_workload import api

    print(json.dumps(api.openapi(), indent=2, sort_keys=True))
    return 0


def _smoke(url: str, wait_s: float) -> int:
    from minipc_workload import smoke

    verdict = smoke.run(url, wait_s)
    print(json.dumps(verdict, indent=2))
    return 0 if verdict["verdict"] == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
