"""Facts about roles, databases and rights of a PostgreSQL server. They read system catalogs only, no service's data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from pyinfra.api import FactBase

from minipc.remote.psql import SUPERUSER_OPTIONS

RESTORE_UNFINISHED = "/var/lib/minipc/backups/restore-unfinished"
RESTORE_OUTCOME = "/var/lib/minipc/backups/restore.json"

# The superuser must not use an object of a service that has the name of a catalog.
SUPERUSER_PSQL = f"PGOPTIONS='{SUPERUSER_OPTIONS}' runuser -u postgres -- psql"

_ACCESS = """
SELECT json_build_object(
  'recovering', pg_is_in_recovery(),
  'restored', EXISTS (SELECT FROM pg_file_settings WHERE name = 'restore_command'),
  'roles', (SELECT coalesce(json_object_agg(rolname, json_build_object(
      'verifier', rolpassword, 'login', rolcanlogin,
      'powerful', rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls,
      'memberships', ARRAY(SELECT b.rolname FROM pg_auth_members m JOIN pg_roles b ON b.oid = m.roleid
                           WHERE m.member = a.oid ORDER BY 1))), '{}')
    FROM pg_authid a),
  'databases', (SELECT coalesce(json_object_agg(datname, json_build_object(
      'owner', pg_get_userbyid(datdba), 'public', datacl IS NULL OR datacl::text ~ '[{,]=',
      'connect', ARRAY(SELECT r.rolname FROM aclexplode(datacl) x JOIN pg_roles r ON r.oid = x.grantee
                       WHERE x.privilege_type = 'CONNECT' AND r.oid <> datdba ORDER BY 1))), '{}')
    FROM pg_database),
  'extensions', (SELECT coalesce(json_agg(extname), '[]') FROM pg_extension))
"""

# Ten default privileges: the rights of the other two roles on the owner's new tables, sequences and schemas.
_SETTLED = """
SELECT NOT EXISTS (SELECT FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o'
                   AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND refobjid IN (runtime, reader))
   AND has_schema_privilege(owner, 'public', 'CREATE')
   AND NOT has_schema_privilege(runtime, 'public', 'CREATE')
   AND NOT has_schema_privilege(reader, 'public', 'CREATE')
   AND (SELECT count(*) FROM pg_default_acl d, aclexplode(d.defaclacl) a
        WHERE d.defaclrole = owner AND d.defaclnamespace = 0 AND (d.defaclobjtype, a.grantee, a.privilege_type) IN (
          ('r', runtime, 'SELECT'), ('r', runtime, 'INSERT'), ('r', runtime, 'UPDATE'), ('r', runtime, 'DELETE'),
          ('S', runtime, 'USAGE'), ('S', runtime, 'SELECT'), ('r', reader, 'SELECT'), ('S', reader, 'SELECT'),
          ('n', runtime, 'USAGE'), ('n', reader, 'USAGE'))) = 10
   AND has_database_privilege(owner, current_database(), 'CREATE')
   AND has_database_privilege(owner, current_database(), 'TEMPORARY')
   AND (SELECT count(*) FROM pg_extension WHERE extname = ANY(string_to_array('{extensions}', ','))) = {number}
FROM (SELECT (SELECT oid FROM pg_roles WHERE rolname = '{owner}') AS owner,
             (SELECT oid FROM pg_roles WHERE rolname = '{runtime}') AS runtime,
             (SELECT oid FROM pg_roles WHERE rolname = '{reader}') AS reader) roles
"""
_OWN_SETTLED = """
SELECT NOT EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
                   WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND rolname <> '{owner}')
"""


class PostgresAccess(FactBase[dict[str, Any]]):
    """Return roles with their password verifiers, databases and extensions; empty if no server answers."""

    def command(self, port: int) -> str:
        query = shlex.quote(" ".join(_ACCESS.split()))
        return f"{SUPERUSER_PSQL} -XAtq -p {port} -d postgres -c {query} 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(json.loads("".join(output)))


class PostgresRights(FactBase[dict[str, bool]]):
    """Return for each database whether its objects and rights are as wanted; False also if this is unknown.

    Each entry is a database with its owner, runtime and reader, or our own database, which has only an owner.
    """

    def command(self, port: int, databases: Sequence[tuple[str, ...]]) -> str:
        return "; ".join(self._question(port, *database) for database in databases) + "; true"

    @staticmethod
    def _question(port: int, name: str, owner: str, runtime: str = "", reader: str = "", *extensions: str) -> str:
        query = (_SETTLED if runtime else _OWN_SETTLED).format(
            owner=owner, runtime=runtime, reader=reader, extensions=",".join(extensions), number=len(extensions)
        )
        psql = f"{SUPERUSER_PSQL} -XAtq -p {port} -d {shlex.quote(name)} -c {shlex.quote(' '.join(query.split()))}"
        return f"echo {shlex.quote(name)} $({psql} 2>/dev/null)"

    @staticmethod
    def default() -> dict[str, bool]:
        return {}

    def process(self, output: list[str]) -> dict[str, bool]:
        return {name: answer == "t" for name, _, answer in (line.partition(" ") for line in output)}


class PostgresCluster(FactBase[str | None]):
    """Return the major version in a cluster's data directory; None if there is none or a restore is unfinished."""

    def command(self, version: str, cluster: str) -> str:
        # An interrupted restore may or may not have written PG_VERSION.
        return (
            f"[ -e {RESTORE_UNFINISHED} ] || cat /var/lib/postgresql/{version}/{cluster}/PG_VERSION 2>/dev/null || true"
        )

    def process(self, output: list[str]) -> str | None:
        return output[0].strip() or None
