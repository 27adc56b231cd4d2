"""PostgreSQL's cluster, roles and databases.

Why not `pyinfra.operations.postgres`: its `role` never changes the password of a role that exists, and a password
would travel in a command line (pyinfra 3.10). Here the server only ever sees SCRAM verifiers, sent through stdin.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import shlex
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from pyinfra import context
from pyinfra.api import StringCommand, operation

from minipc.config.schema import PostgresDatabase, PostgresRole
from minipc.facts.postgres import PostgresAccess, PostgresCluster
from minipc.secrets import Secret

# PostgreSQL's own default (scram_iterations).
SCRAM_ITERATIONS = 4096
# Replaying a week of WAL takes minutes; after a day something else is wrong.
RECOVERY_TIMEOUT_S = 86400
# Some minutes without a repository.
RECOVERY_STOPS = 40


@operation()
def cluster_present(version: str, cluster: str, from_backup: str) -> Generator[StringCommand, None, None]:
    """Has a database: the one that is there, else the one that was backed up, else, if there never was one, a new one.

    Args:
        from_backup: what to do where there is no database but a backup of one: "refuse", "restore", or
            "restore-incomplete": also when WAL is missing, which loses what came after the gap.
    """
    if context.host.get_fact(PostgresCluster, version=version, cluster=cluster) is not None:
        return
    data = f"/var/lib/postgresql/{version}/{cluster}"
    yield StringCommand(f"/usr/local/lib/minipc/restore {from_backup}")
    yield StringCommand(f"[ -s {data}/PG_VERSION ] || pg_createcluster {version} {cluster}")


@operation()
def recovery_ended(port: int, from_backup: str) -> Generator[StringCommand, None, None]:
    """Waits until a restored database has replayed its WAL, sees that it was all of it, and only then lets it archive.

    Args:
        from_backup: as in `cluster_present`.
    """
    found = context.host.get_fact(PostgresAccess, port=port)
    psql = f"runuser -u postgres -- psql -XAtq -p {port} -d postgres"
    if found.get("recovering") is not False:
        wait = _WAIT.format(seconds=RECOVERY_TIMEOUT_S, stops=RECOVERY_STOPS, psql=psql)
        yield StringCommand("sh", "-c", shlex.quote(wait))
    if found.get("restored") is not False:
        # It takes back what the restore left in postgresql.auto.conf: the settings are those of the placed file.
        yield StringCommand(f"/usr/local/lib/minipc/restore recovered {from_backup}")


# A server that can't get its WAL stops, and systemd starts it again; each time it goes on where it was.
_WAIT = """
stops() {{ systemctl show --property=NRestarts --value postgresql@17-main; }}
before=$(stops)
for i in $(seq {seconds}); do
    [ "$({psql} -c 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ] && exit 0
    [ $(($(stops) - before)) -ge {stops} ] && break
    systemctl --quiet is-failed postgresql@17-main && break
    sleep 1
done
tail -n 20 /var/log/postgresql/*.log >&2
echo "restore: recovery does not come to its end: is a repository out of reach? Mend that and run again" >&2
exit 1
"""


@operation()
def access_present(
    port: int,
    roles: Sequence[PostgresRole],
    databases: Sequence[PostgresDatabase],
    passwords: Mapping[str, Secret],
    extensions: Sequence[str],
) -> Generator[StringCommand, None, None]:
    """Has the roles with these passwords and memberships, the databases with these owners, and the extensions.

    What is there but not listed is left alone: data is never dropped by a converge.
    """
    found = context.host.get_fact(PostgresAccess, port=port)
    statements = [
        *_role_statements(roles, passwords, found.get("roles", {})),
        *_database_statements(databases, roles, found.get("databases", {})),
        *(
            f'CREATE EXTENSION IF NOT EXISTS "{name}";'
            for name in extensions
            if name not in found.get("extensions", [])
        ),
    ]
    if statements:
        # Verifiers stay out of the server's log, also of a statement that fails, and out of pg_stat_statements.
        quiet = "SET log_min_error_statement = panic; SET log_min_duration_statement = -1; "
        quiet += "SET pg_stat_statements.track_utility = off;"
        script = "\n".join([quiet, *statements])
        yield StringCommand(
            f"runuser -u postgres -- psql -Xq -v ON_ERROR_STOP=1 -p {port} -d postgres", _stdin=script + "\n"
        )


def _role_statements(
    roles: Sequence[PostgresRole], passwords: Mapping[str, Secret], found: Mapping[str, Any]
) -> list[str]:
    statements = []
    for role in roles:
        there = found.get(role.name)
        password = passwords[role.name].reveal()
        if not there:
            statements.append(f'CREATE ROLE "{role.name}" LOGIN;')
        elif not there["login"]:
            statements.append(f'ALTER ROLE "{role.name}" LOGIN;')
        if there and there["super"]:
            statements.append(f'ALTER ROLE "{role.name}" NOSUPERUSER;')
        if not there or not verifies(password, there["verifier"]):
            statements.append(f"ALTER ROLE \"{role.name}\" PASSWORD '{scram_verifier(password)}';")
        memberships = there["memberships"] if there else []
        statements += [f'GRANT "{name}" TO "{role.name}";' for name in role.memberships if name not in memberships]
        statements += [f'REVOKE "{name}" FROM "{role.name}";' for name in memberships if name not in role.memberships]
    return statements


def _database_statements(
    databases: Sequence[PostgresDatabase], roles: Sequence[PostgresRole], found: Mapping[str, Any]
) -> list[str]:
    statements = []
    for database in databases:
        there = found.get(database.name)
        if not there:
            statements.append(f'CREATE DATABASE "{database.name}" OWNER "{database.owner}";')
        elif there["owner"] != database.owner:
            statements.append(f'ALTER DATABASE "{database.name}" OWNER TO "{database.owner}";')
        if not there or there["public"]:
            # Every role could log in to every database otherwise.
            statements.append(f'REVOKE ALL ON DATABASE "{database.name}" FROM PUBLIC;')
            watchers = [role.name for role in roles if "pg_monitor" in role.memberships]
            statements += [f'GRANT CONNECT ON DATABASE "{database.name}" TO "{name}";' for name in watchers]
    return statements


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL stores for a password: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.

    Source: RFC 5802 and 7677; PostgreSQL manual, `pg_authid`. Our passwords are ASCII, so SASLprep changes nothing.
    """
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    salt_text, stored, server = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt_text}${stored}:{server}"


def verifies(password: str, verifier: str | None) -> bool:
    """Whether the stored verifier is for this password; False for an absent one or one of another kind."""
    try:
        scheme, parameters, _ = (verifier or "").split("$")
        iterations, salt = parameters.split(":")
    except ValueError:
        return False
    if scheme != "SCRAM-SHA-256" or int(iterations) != SCRAM_ITERATIONS:
        return False
    return hmac.compare_digest(scram_verifier(password, base64.b64decode(salt)), verifier or "")
