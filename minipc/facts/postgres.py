"""Roles and databases of a PostgreSQL server, in one query."""

from __future__ import annotations

import json
import shlex
from typing import Any

from pyinfra.api import FactBase

RESTORE_UNFINISHED = "/var/lib/minipc/backups/restore-unfinished"
RESTORE_OUTCOME = "/var/lib/minipc/backups/restore.json"

_QUERY = """
SELECT json_build_object(
  'recovering', pg_is_in_recovery(),
  'restored', EXISTS (SELECT FROM pg_file_settings WHERE name = 'restore_command'),
  'roles', (SELECT coalesce(json_object_agg(rolname, json_build_object(
      'verifier', rolpassword, 'login', rolcanlogin, 'super', rolsuper,
      'memberships', ARRAY(SELECT b.rolname FROM pg_auth_members m JOIN pg_roles b ON b.oid = m.roleid
                           WHERE m.member = a.oid ORDER BY 1))), '{}')
    FROM pg_authid a),
  'databases', (SELECT coalesce(json_object_agg(datname, json_build_object(
      'owner', pg_get_userbyid(datdba), 'public', datacl IS NULL OR datacl::text ~ '[{,]=')), '{}')
    FROM pg_database),
  'extensions', (SELECT coalesce(json_agg(extname), '[]') FROM pg_extension))
"""


class PostgresAccess(FactBase[dict[str, Any]]):
    """Who may log in, with which password verifier, and which databases there are; empty when no server answers."""

    def command(self, port: int) -> str:
        query = shlex.quote(" ".join(_QUERY.split()))
        return f"runuser -u postgres -- psql -XAtq -p {port} -d postgres -c {query} 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(json.loads("".join(output)))


class PostgresCluster(FactBase[str | None]):
    """Major version found in a cluster's data directory; None where there is none, or a restore has not ended."""

    def command(self, version: str, cluster: str) -> str:
        # A restore that was cut off has left some of the files: PG_VERSION among them, or not.
        return (
            f"[ -e {RESTORE_UNFINISHED} ] || cat /var/lib/postgresql/{version}/{cluster}/PG_VERSION 2>/dev/null || true"
        )

    def process(self, output: list[str]) -> str | None:
        return output[0].strip() or None
