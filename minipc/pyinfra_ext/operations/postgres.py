"""Operations for PostgreSQL's cluster, roles and databases.

`pyinfra.operations.postgres` is not used, because its `role` never changes the password of an existing role, and puts
the password into a command line (pyinfra 3.10). Here the server receives only SCRAM verifiers, through stdin.
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
from minipc.pyinfra_ext.facts.memory import recall
from minipc.pyinfra_ext.facts.postgres import SUPERUSER_PSQL, PostgresAccess, PostgresCluster, PostgresRights
from minipc.remote.psql import OWN, SUPERUSER
from minipc.secrets import Secret

# PostgreSQL's default (scram_iterations).
SCRAM_ITERATIONS = 4096
# Replaying a week of WAL takes minutes; after a day something else is wrong.
RECOVERY_TIMEOUT_S = 86400
# Some minutes without a repository.
RECOVERY_STOPS = 40
# The databases that initdb creates.
NEW_SERVER = {name: {"owner": SUPERUSER, "public": True, "connect": []} for name in (SUPERUSER, "template1")}


@operation()
def cluster_present(version: str, cluster: str, from_backup: str) -> Generator[StringCommand, None, None]:
    """Ensure that there is a database: keep the existing one, restore the backup, or create one if there is no backup.

    Args:
        from_backup: what to do if there is a backup and no database: "refuse", "restore", or "restore-incomplete",
            which also restores if WAL is missing and loses the writes after the gap.
    """
    if context.host.get_fact(PostgresCluster, version=version, cluster=cluster) is not None:
        return
    data = f"/var/lib/postgresql/{version}/{cluster}"
    yield StringCommand(f"/usr/local/lib/minipc/restore {from_backup}")
    yield StringCommand(f"[ -s {data}/PG_VERSION ] || pg_createcluster {version} {cluster}")


@operation()
def recovery_ended(port: int, from_backup: str) -> Generator[StringCommand, None, None]:
    """Wait until a restored database has replayed its WAL, check that none is missing, then enable archiving.

    Args:
        from_backup: as in `cluster_present`.
    """
    found = recall(PostgresAccess, port=port)
    psql = f"{SUPERUSER_PSQL} -XAtq -p {port} -d postgres"
    if found.get("recovering") is not False:
        wait = _WAIT.format(seconds=RECOVERY_TIMEOUT_S, stops=RECOVERY_STOPS, psql=psql)
        yield StringCommand("sh", "-c", shlex.quote(wait))
    if found.get("restored") is not False:
        # This removes the settings of the restore, so that those of the placed file apply.
        yield StringCommand(f"/usr/local/lib/minipc/restore recovered {from_backup}")


# A server that cannot get its WAL stops, and systemd starts it again; it continues where it stopped.
_WAIT = """
stops() {{ systemctl show --property=NRestarts --value postgresql@17-main; }}
before=$(stops)
for i in $(seq {seconds}); do
    [ "$({psql} -c 'SELECT pg_is_in_recovery()' 2>/dev/null)" = f ] && exit 0
    [ $(($(stops) - before)) -ge {stops} ] && break
    systemctl --quiet is-failed postgresql@17-main && break
    sleep 1
done
log=$(ls -t /var/log/postgresql/*.log | head -n 1)
tail -n 20 "$log" >&2
# A client that comes too early is refused with FATAL, too.
why=$(tail -n 500 "$log" | grep -E "FATAL|PANIC" | grep -vE "the database system is|administrator command" | tail -n 1)
[ -n "$why" ] || why="check that the repositories can be reached"
echo "restore: recovery does not end: $why. Then run again" >&2
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
    """Have the roles with these passwords and memberships, the databases with the rights of their roles, and the
    extensions.

    Roles and databases that are not listed are not changed; a converge never drops data. A database that belongs to its
    runtime role, as in older versions, is changed: its objects are given to the owner.
    """
    found = recall(PostgresAccess, port=port)
    asked = [(each.name, each.owner, each.runtime, each.reader) for each in databases]
    settled = context.host.get_fact(PostgresRights, port=port, databases=[*asked, (OWN, OWN)])
    statements = access_statements(roles, databases, passwords, extensions, found, settled)
    if statements:
        # Verifiers stay out of the server's log, also of a statement that fails, and out of pg_stat_statements.
        quiet = "SET log_min_error_statement = panic; SET log_min_duration_statement = -1; "
        quiet += "SET pg_stat_statements.track_utility = off;"
        script = "\n".join([quiet, *statements])
        yield StringCommand(f"{SUPERUSER_PSQL} -Xq -v ON_ERROR_STOP=1 -p {port} -d postgres", _stdin=script + "\n")


def access_statements(
    roles: Sequence[PostgresRole],
    databases: Sequence[PostgresDatabase],
    passwords: Mapping[str, Secret],
    extensions: Sequence[str],
    found: Mapping[str, Any],
    settled: Mapping[str, bool],
) -> list[str]:
    """Return the psql lines that change the found state into the wanted one; none if they are equal.

    Args:
        found: result of `PostgresAccess`; empty for a new server.
        settled: result of `PostgresRights`.
    """
    there = found.get("extensions", [])
    return [
        *_role_statements([*roles, *_without_password(databases)], passwords, found.get("roles", {})),
        *_database_statements(databases, roles, found.get("databases", NEW_SERVER)),
        *(f'CREATE EXTENSION IF NOT EXISTS "{name}" SCHEMA public;' for name in extensions if name not in there),
        *(line for each in databases if not settled.get(each.name) for line in [*_extensions(each), *_rights(each)]),
        *(_OWN_TABLES if not settled.get(OWN) else ()),
    ]


def _without_password(databases: Sequence[PostgresDatabase]) -> list[PostgresRole]:
    """Return the roles of our own programs: they log in by peer only (`templates/postgres/pg_ident.conf.j2`)."""
    return [PostgresRole(name=name, memberships=[]) for name in [OWN, *(each.reader for each in databases)]]


def _role_statements(
    roles: Sequence[PostgresRole], passwords: Mapping[str, Secret], found: Mapping[str, Any]
) -> list[str]:
    statements = []
    for role in roles:
        there = found.get(role.name)
        password = passwords[role.name].reveal() if role.name in passwords else None
        if not there:
            statements.append(f'CREATE ROLE "{role.name}" LOGIN;')
        elif not there["login"]:
            statements.append(f'ALTER ROLE "{role.name}" LOGIN;')
        if there and there["powerful"]:
            statements.append(
                f'ALTER ROLE "{role.name}" NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS;'
            )
        if password is None:
            statements += [f'ALTER ROLE "{role.name}" PASSWORD NULL;'] if there and there["verifier"] else []
        elif not there or not verifies(password, there["verifier"]):
            statements.append(f"ALTER ROLE \"{role.name}\" PASSWORD '{scram_verifier(password)}';")
        memberships = there["memberships"] if there else []
        statements += [f'GRANT "{name}" TO "{role.name}";' for name in role.memberships if name not in memberships]
        statements += [f'REVOKE "{name}" FROM "{role.name}";' for name in memberships if name not in role.memberships]
    return statements


def _database_statements(
    databases: Sequence[PostgresDatabase], roles: Sequence[PostgresRole], found: Mapping[str, Any]
) -> list[str]:
    """Return the statements that give each database its owner, and CONNECT to its roles only.

    A service's database belongs to the superuser: its owner could set options for everybody who logs in. `template1` is
    closed, because otherwise each role could connect to it.
    """
    services = {role for each in databases for role in (each.owner, each.runtime)}
    others = [role.name for role in roles if role.name not in services]
    wanted = {
        **{each.name: (SUPERUSER, [each.owner, each.runtime, each.reader]) for each in databases},
        OWN: (OWN, []),
        SUPERUSER: (SUPERUSER, others),
        "template1": (SUPERUSER, []),
    }
    statements = []
    for name, (owner, allowed) in wanted.items():
        there = found.get(name)
        if not there:
            statements.append(f'CREATE DATABASE "{name}" OWNER "{owner}";')
        if not there or there["public"]:
            statements.append(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC;')
        moves = there is not None and there["owner"] != owner
        connect = there["connect"] if there is not None else []
        let_in = [] if moves else connect
        grants = [f'GRANT CONNECT ON DATABASE "{name}" TO "{role}";' for role in allowed if role not in let_in]
        if moves:
            # In one transaction, so that the earlier owner is never locked out in between.
            grants = ["BEGIN;", f'ALTER DATABASE "{name}" OWNER TO "{owner}";', *grants, "COMMIT;"]
        extra = [role for role in connect if role not in allowed]
        statements += [*grants, *(f'REVOKE ALL ON DATABASE "{name}" FROM "{role}";' for role in extra)]
    return statements


def _extensions(database: PostgresDatabase) -> list[str]:
    """Return what makes the extensions of a service, before its first migration: its owner role could not."""
    if not database.extensions:
        return []
    # In `public`, unless the extension itself names another schema. CASCADE: some need others.
    made = [f'CREATE EXTENSION IF NOT EXISTS "{name}" CASCADE;' for name in database.extensions]
    return [f'\\connect "{database.name}"', "SET search_path = public;", *made]


def _rights(database: PostgresDatabase) -> list[str]:
    """Return the statements that make the owner role the owner of all objects, and grant rights to the other two.

    In one transaction, so that a running service never lacks a right. If another transaction locks a table for more
    than five seconds, this one fails instead of blocking others; run it again.
    """
    owner, runtime, reader = (f'"{name}"' for name in (database.owner, database.runtime, database.reader))
    to_runtime = ["SELECT, INSERT, UPDATE, DELETE ON {all}TABLES", "USAGE, SELECT ON {all}SEQUENCES"]
    to_reader = ["SELECT ON {all}TABLES", "SELECT ON {all}SEQUENCES"]
    grants = [(right, runtime) for right in to_runtime] + [(right, reader) for right in to_reader]
    return [
        f'\\connect "{database.name}"',
        "SET search_path = pg_catalog; SET lock_timeout = '5s';",
        "BEGIN;",
        f"REASSIGN OWNED BY {runtime}, {reader} TO {owner};",
        # Migrations make temporary tables, too.
        f'GRANT CREATE, TEMPORARY ON DATABASE "{database.name}" TO {owner};',
        f"REVOKE CREATE ON SCHEMA public FROM PUBLIC, {runtime}, {reader};",
        f"GRANT USAGE, CREATE ON SCHEMA public TO {owner};",
        f"GRANT USAGE ON SCHEMA public TO {runtime}, {reader};",
        *(f"GRANT {right.format(all='ALL ')} IN SCHEMA public TO {role};" for right, role in grants),
        *(
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT {right.format(all='')} TO {role};"
            for right, role in [*grants, ("USAGE ON SCHEMAS", runtime), ("USAGE ON SCHEMAS", reader)]
        ),
        "COMMIT;",
    ]


# Tables that older versions created as the superuser; `stanza` creates them if they do not exist.
_OWN_TABLES = [
    f'\\connect "{OWN}"',
    f'ALTER TABLE IF EXISTS public.heartbeat OWNER TO "{OWN}";',
    f'ALTER TABLE IF EXISTS public.canary OWNER TO "{OWN}";',
]


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what PostgreSQL stores for a password: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.

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
    """Return whether the stored verifier matches this password; False if it is missing or of another kind."""
    try:
        scheme, parameters, _ = (verifier or "").split("$")
        iterations, salt = parameters.split(":")
    except ValueError:
        return False
    if scheme != "SCRAM-SHA-256" or int(iterations) != SCRAM_ITERATIONS:
        return False
    return hmac.compare_digest(scram_verifier(password, base64.b64decode(salt)), verifier or "")
