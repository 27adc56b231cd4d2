"""The smoke test: what must be true before the service counts as restored, in the order of importance.

`minipc verify --smoke`; a phase near the end of every rebuild and rehearsal. It removes what it writes.
"""

from __future__ import annotations

import json
import secrets as random

import pytest

from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.offsite import restic_command
from minipc.services import requests
from tests.verify.conftest import eventually, not_exercised

OUTCOMES = "/var/lib/minipc/backups/outcomes.json"


@pytest.fixture(scope="module")
def send(edge):
    """Return a function that sends a request of the service file through the ingress; it returns what is wrong."""

    def send(request, id_="0"):
        prepared = requests.prepare(request, id_)
        argv = prepared.curl(f"https://{edge.domain}", "--max-time", "30", *edge.to(edge.side.ipv4))
        done = edge.side.run(*argv, stdin=prepared.body)
        return requests.problem(request, *requests.read_answer(done.stdout or done.stderr))

    return send


@pytest.fixture(scope="module")
def offsite(settings):
    if not settings.has_offsite:
        not_exercised(NO_OFFSITE)


@pytest.fixture(scope="module")
def backed_up(sh, settings):
    """Start one backup into each repository and return the outcomes."""
    units = ["minipc-backup@diff.service", *(["minipc-backup@files.service"] if settings.has_offsite else [])]
    began = float(sh("date +%s"))
    outcomes = json.loads(sh(f"{'; '.join(f'systemctl start {unit}' for unit in units)}; cat {OUTCOMES}"))
    return {repo: outcome for repo, outcome in outcomes.items() if outcome["ended"] >= began}


def test_the_public_name_answers(service, edge):
    """The service is ready, asked under its public name."""
    path = service.file.health.ready
    assert eventually(lambda: edge.get(path).code == 200, within_s=60, every_s=1), edge.get(path)


def test_each_smoke_request_gets_its_answer(service, send):
    """Every smoke request of the service file gets the expected answer."""
    checks = [each for each in service.file.smoke if each.request]
    if not checks:
        not_exercised(f"{service.file.name} declares no smoke requests: its file has none in `smoke`")

    def wrong():
        return {each.name: said for each in checks if (said := send(each.request))}

    found = eventually(wrong, within_s=90, every_s=1, until=lambda found: not found)
    assert not found, found


def test_each_smoke_command_ran_with_the_release(service):
    """Every smoke command of the service file passed."""
    names = [each.name for each in service.file.smoke if each.command]
    if names:
        not_exercised(f"{service.file.name}: commands run with each release only: {', '.join(names)}")


def test_what_users_write_is_stored(service, send, sql, environment):
    """What a user writes is found in the database."""
    writes = service.file.rehearsal.writes if service.file.rehearsal else []
    if not writes:
        not_exercised(f"{service.file.name} does not declare what users write: its file has no rehearsal.writes")
    if not environment.disposable:
        not_exercised("it would leave a row among the users' data; the lab exercises it")
    for each in writes:
        id_ = f"smoke-{random.token_hex(6)}"
        assert not send(each.request, id_), send(each.request, id_)
        assert id_ in sql(each.find, service.file.postgres.database).splitlines(), each.data_class


@pytest.mark.parametrize("repo", ["repo1", "repo2", "restic"])
def test_a_backup_runs_again(backed_up, settings, repo):
    """A backup into the repository succeeds."""
    if repo != "repo1" and not settings.has_offsite:
        not_exercised(NO_OFFSITE)
    assert repo in backed_up, f"{repo} was not even tried"
    assert backed_up[repo]["success"], backed_up[repo]["error"]


def test_wal_reaches_every_repository(sh):
    """WAL is archived to every repository."""
    sh("cd / && runuser -u postgres -- pgbackrest --stanza=main check")


def test_the_off_site_machine_is_reachable(offsite, sh, settings):
    """The off-site host is reachable for backups.

    Both by pgBackRest and by restic, with this machine's own keys.
    """
    info = json.loads(sh("cd / && runuser -u postgres -- pgbackrest --stanza=main --repo=2 --output=json info"))
    assert info[0]["backup"], "repo2 holds no backup"
    sh(f"{restic_command(settings)} cat config >/dev/null")
