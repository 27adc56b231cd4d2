"""`python3 -m minipc_workload api | worker NAME | migrate | smoke | openapi`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys

import structlog

from minipc_workload import WORKERS, logs, settings

log = structlog.stdlib.get_logger("minipc_workload")


def main() -> int:
    """Run one process of the service. Exit codes: 0 stopped or passed, 1 failed, 2 wrong settings or usage."""
    parser = argparse.ArgumentParser(prog="minipc_workload")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("api", help="serve HTTP")
    commands.add_parser("worker", help="run one worker").add_argument("name", choices=WORKERS)
    migrate = commands.add_parser("migrate", help="bring the schema of the database to this version")
    migrate.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="first wait for the data stores")
    commands.add_parser("openapi", help="print the shape of the API")
    smoke = commands.add_parser("smoke", help="check a running service as a user would notice")
    smoke.add_argument("--url", default=os.environ.get("SMOKE_URL") or "http://127.0.0.1:30080")
    smoke.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="repeat until it passes")
    arguments = parser.parse_args()

    # Imported where they are needed: each process loads only its own libraries.
    if arguments.command == "smoke":
        from minipc_workload import smoke as checks

        verdict = checks.run(arguments.url, arguments.wait)
        print(json.dumps(verdict, indent=2))
        return 0 if verdict["verdict"] == "pass" else 1
    if arguments.command == "openapi":
        from minipc_workload import api

        print(json.dumps(api.openapi(), indent=2, sort_keys=True))
        return 0
    service = arguments.name if arguments.command == "worker" else arguments.command
    try:
        values = settings.load()
    except settings.SettingsError as error:
        logs.configure(service)
        log.critical(f"service failed: {error}")
        return 2
    logs.configure(service, values.log_level)
    logs.report_errors(values, service)
    try:
        return _run(arguments, service, values)
    except Exception:
        log.critical("service failed", exc_info=True)
        return 1


def _run(arguments: argparse.Namespace, service: str, values: settings.Settings) -> int:
    if arguments.command == "api":
        from minipc_workload import api

        if not api.serve(values):
            log.critical(f"service failed: could not listen on {values.api_host}:{values.api_port}")
            return 1
    elif arguments.command == "worker":
        from minipc_workload import worker

        asyncio.run(worker.serve(service, values))
    else:
        from minipc_workload import migrate

        log.info("service started", version=values.version)
        if arguments.wait:
            migrate.wait_for_database(values, arguments.wait)
        migrate.upgrade(values)
        log.info("service stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
