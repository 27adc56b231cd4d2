"""Quote names of tables and columns for SQL. Names come from service files and may contain anything but NUL."""

from __future__ import annotations

from collections.abc import Iterable

PUBLIC = "public"
LISTED = 30
# Tables of the services: not PostgreSQL's own, no partitions, and none that belongs to an extension.
ALL_TABLES = """
SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname) ORDER BY 1, 2), '[]')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""
"""Asks a database for schema and name of its tables, as JSON."""


def identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier.

    >>> identifier('Us"ers')
    '"Us""ers"'
    """
    return '"' + name.replace('"', '""') + '"'


def parts(name: str) -> tuple[str, str]:
    """Return schema and table of `TABLE` or `SCHEMA.TABLE`.

    >>> parts("billing.invoices"), parts("Users")
    (('billing', 'invoices'), ('public', 'Users'))
    """
    schema, _, table = name.rpartition(".")
    return schema or PUBLIC, table


def table(name: str) -> str:
    """Return `TABLE` or `SCHEMA.TABLE` as it is written in SQL: each part quoted, with its schema.

    >>> table("billing.invoices"), table("Users")
    ('"billing"."invoices"', '"public"."Users"')
    """
    return ".".join(map(identifier, parts(name)))


def listed(tables: Iterable[tuple[str, str]]) -> str:
    """Return tables as a text, sorted; not more than LISTED of them. Empty if there are none."""
    names = [shown(*each) for each in sorted(tables)]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def shown(schema: str, name: str) -> str:
    """Return a table as a service file names it, without control characters: services choose their names.

    >>> shown("public", "users"), shown("billing", "a\\nb")
    ('users', 'billing.a?b')
    """
    text = name if schema == PUBLIC else f"{schema}.{name}"
    return "".join(each if each.isprintable() else "?" for each in text)
