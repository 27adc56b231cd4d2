"""Move a service in: its database from another server or a dump, its files from a folder. Compare both sides.

The statements of the dump are filtered on the controller and run on the machine as the service's owner role, in one
transaction: an import that fails changes nothing. Its password is in a file there that is removed afterwards.
"""

from __future__ import annotations

import gzip
import inspect
import itertools
import json
import os
import re
import secrets
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, unquote, urlsplit

from minipc.config.service import Service
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.core.process import clean_environment
from minipc.images import prerequisites
from minipc.remote import queries, ssh
from minipc.remote.inventory import Target
from minipc.remote.queries import reason
from minipc.secrets.secret import Secret
from minipc_machine import import_sums, sql_names
from minipc_machine.volume_files import VOLUMES

_DUMP = ("--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-tablespaces")
_COPY = re.compile(rb"^COPY (.+?) (\(.*\) )?FROM stdin;$")
# Who owns what, and who may what, is decided by this project. Extensions are created by a converge, as superuser.
_LEFT_OUT = re.compile(
    rb"^(ALTER [^;]* OWNER TO [^;]*;|GRANT [^;]*;|REVOKE [^;]*;|ALTER DEFAULT PRIVILEGES [^;]*;"
    rb"|(CREATE|COMMENT ON|DROP) EXTENSION [^;]*;"
    rb'|(CREATE|COMMENT ON|ALTER|DROP) SCHEMA (IF EXISTS )?"?public"?\b[^;]*;)$'
)
_EXTENSION = re.compile(rb'^CREATE EXTENSION (?:IF NOT EXISTS )?"?([\w-]+)"?')
_QUOTE = re.compile(rb"\$[A-Za-z_0-9]*\$")
_FOREIGN_TIME = re.compile(rb"\d\d:\d\d:\d\d(?:\.\d+)?[+-](?!00(?:\t|$))\d\d")
# Reads the dump, which may come from anybody, without rights.
_PG_RESTORE = (
    "setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs",
    "/usr/lib/postgresql/17/bin/pg_restore",
)
_TIME_LIMIT_S = 12 * 3600.0
# Removes what the owner role owns, and no part of an extension. Runs as that role.
_EMPTY = """
DO $$
DECLARE found record;
BEGIN
  FOR found IN SELECT nspname FROM pg_namespace WHERE nspowner = current_user::regrole AND nspname <> 'public' LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', found.nspname);
  END LOOP;
  FOR found IN
    SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
           WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind, c.relname AS name
    FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = current_user::regrole
      AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
      -- Not what belongs to an extension, nor what goes with its table: sequences of columns, partitions.
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('e', 'a', 'i'))
  LOOP
    EXECUTE format('DROP %s IF EXISTS public.%I CASCADE', found.kind, found.name);
  END LOOP;
  FOR found IN SELECT p.oid::regprocedure::text AS name FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace AND p.proowner = current_user::regrole LOOP
    EXECUTE format('DROP ROUTINE IF EXISTS %s CASCADE', found.name);
  END LOOP;
  FOR found IN SELECT t.typname AS name FROM pg_type t
    WHERE t.typnamespace = 'public'::regnamespace AND t.typowner = current_user::regrole
      AND (t.typtype IN ('d', 'e', 'r')
           OR EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c')) LOOP
    EXECUTE format('DROP TYPE IF EXISTS public.%I CASCADE', found.name);
  END LOOP;
END $$;
"""


@dataclass(frozen=True)
class Compared:
    """A table or volume on both sides.

    Attributes:
        name: of the table, or of the volume.
        amount: rows or files that were sent.
        problem: what differs; empty if nothing does.
        gap: what was not compared, and why; empty if everything was.
    """

    name: str
    amount: int
    problem: str = ""
    gap: str = ""


@dataclass
class Filter:
    """Takes the statements of a plain dump, leaves out what this project decides, and sums the rows.

    Attributes:
        tables: name as the dump writes it -> its columns, and its rows.
        extensions: names of the extensions that the dump needs.
        foreign: tables with a time in a time zone other than UTC, whose text differs here.
        inserts: whether it has INSERT statements, whose rows are not summed.
    """

    tables: dict[str, tuple[str, import_sums.Rows]] = field(default_factory=dict)
    extensions: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    inserts: bool = False

    def lines(self, dump: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines to run.

        Raises:
            MinipcError: the dump contains a command of psql, which could run programs, or ends within a table.
        """
        rows, quote = None, b""
        table = ""
        for line in dump:
            if rows is not None:
                if line.rstrip(b"\r\n") == b"\\.":
                    rows = None
                else:
                    rows.add(line.rstrip(b"\n"))
                    if table not in self.foreign and _FOREIGN_TIME.search(line):
                        self.foreign.add(table)
            elif not quote and (found := _COPY.match(line.rstrip(b"\r\n"))):
                table, rows = found.group(1).decode(), import_sums.Rows()
                self.tables[table] = ((found.group(2) or b"").decode().strip(), rows)
            elif not quote and self._is_left_out(line.rstrip(b"\r\n")):
                continue
            else:
                quote = _quote_after(line, quote)
            yield line
        if rows is not None:
            raise MinipcError(f"the dump ends within the table {table}", "make it again; nothing was imported")

    def _is_left_out(self, text: bytes) -> bool:
        """Return whether a statement is not run. Raise MinipcError if it may not be there."""
        if text.startswith((b"\\restrict ", b"\\unrestrict ")):
            return True  # pg_dump's own guard against what the next line refuses
        if text.startswith(b"\\"):
            raise MinipcError(f"the dump contains a command of psql: {text[:40]!r}", "make it with pg_dump")
        if found := _EXTENSION.match(text):
            self.extensions.add(found.group(1).decode())
        self.inserts = self.inserts or text.startswith(b"INSERT INTO ")
        return _LEFT_OUT.match(text) is not None


def _quote_after(line: bytes, quote: bytes) -> bytes:
    """Return the dollar quote, such as of a function's body, that is open after a line; empty if none is."""
    for each in _QUOTE.findall(line):
        if not quote:
            quote = each
        elif each == quote:
            quote = b""
    return quote


def database(
    target: Target, service: Service, owner: Secret, dump: Iterable[bytes], *, again: bool = False
) -> Iterator[Compared]:
    """Import a dump, and yield the comparison of each table.

    Args:
        owner: password of the service's owner role.
        dump: lines of a plain dump, as `from_server` and `from_file` give them.
        again: remove what the database contains, in the same transaction.

    Raises:
        RefusedError: the database is not empty.
        MinipcError: a statement of the dump fails; nothing was changed then.
        CouldNotVerifyError: the machine cannot be reached.
    """
    if service.postgres is None:
        raise RefusedError(f"{service.name} has no `postgres`", "declare it in the service file, and converge")
    name = service.postgres.database
    there = queries.tables(target, name)
    if there and not again:
        raise RefusedError(
            f"the database {name} of {target.alias} is not empty: it has {sql_names.listed(sorted(there))}",
            "--again removes what it contains, in the same transaction",
        )
    taken = Filter()
    with _password_file(target, owner) as login:
        # The end of the stream alone must not commit: it is also what a lost connection looks like.
        start = b"SET client_min_messages = warning;\nBEGIN;\n" + (_EMPTY.encode() if again else b"")
        _run_psql(target, service, login, itertools.chain([start], taken.lines(dump), [b"COMMIT;\n"]))
        missing = taken.extensions - {"plpgsql", *(each.name for each in service.postgres.extensions)}
        sums = _sums_there(target, service, login, taken.tables)
    for table, (_, rows) in taken.tables.items():
        yield _compare(table, rows, sums.get(table, {}), foreign=table in taken.foreign)
    for extension in sorted(missing):
        yield Compared(f"extension {extension}", 0, gap="the service file does not declare it, and nothing needed it")
    if taken.inserts:
        yield Compared("rows of INSERT statements", 0, gap="the dump was made with --inserts; make it without")


def _psql(target: Target, service: Service, login: str, *before: str) -> str:
    """Return the shell command that runs psql on the machine as the owner role, from an account without rights.

    Args:
        before: another program that gets this command as its arguments.
    """
    if service.postgres is None:
        raise RefusedError(f"{service.name} has no `postgres`")
    role = service.postgres.roles[0]
    words = [*before, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-p", str(target.settings.postgres.port)]
    words += ["-U", role, "-d", service.postgres.database]
    environment = f"PGPASSFILE={login} PGTZ=UTC PGDATESTYLE=ISO PGCLIENTENCODING=UTF8"
    return f"cd / && {environment} setpriv --reuid=nobody --regid=nogroup --clear-groups -- {shlex.join(words)}"


def _run_psql(target: Target, service: Service, login: str, lines: Iterable[bytes]) -> None:
    """Run statements. Raise MinipcError if one fails; what follows it is not run."""
    command = f"{_psql(target, service, login)} -o /dev/null"
    with _ssh(target, command) as (stdin, _):
        for line in lines:
            stdin.write(line)


def _sums_there(
    target: Target, service: Service, login: str, tables: Mapping[str, tuple[str, import_sums.Rows]]
) -> dict[str, dict[str, object]]:
    """Return count and checksum of the rows of each table on the machine."""
    statements = {}
    for table, (columns, _) in tables.items():
        what = columns.removeprefix("(").removesuffix(")") or "*"
        statements[table] = f"COPY (SELECT {what} FROM ONLY {table}) TO STDOUT"  # noqa: S608 - as pg_dump quoted it
    program = ("/usr/bin/python3", "-I", "-c", inspect.getsource(import_sums), "tables")
    command = _psql(target, service, login, *program)
    found: dict[str, dict[str, object]] = json.loads(
        queries.on(target, command, json.dumps(statements), timeout_s=_TIME_LIMIT_S)
    )
    return found


def _compare(table: str, rows: import_sums.Rows, there: Mapping[str, object], *, foreign: bool) -> Compared:
    if there.get("count") != rows.count:
        return Compared(table, rows.count, f"{rows.count} rows were sent, {there.get('count')} arrived")
    if foreign:
        return Compared(table, rows.count, gap="checksum: the dump has times in another time zone than UTC")
    if there["checksum"] != rows.checksum:
        return Compared(table, rows.count, "the checksum of its rows differs")
    return Compared(table, rows.count)


@contextmanager
def _password_file(target: Target, owner: Secret) -> Iterator[str]:
    """Give the path of a password file on the machine that only the account without rights can read."""
    path = f"/run/minipc-import-{secrets.token_hex(8)}"
    value = re.sub(r"([\\:])", r"\\\1", owner.reveal())
    queries.on(target, f"umask 077 && cat > {path} && chown nobody:nogroup {path}", f"*:*:*:*:{value}\n")
    try:
        yield path
    finally:
        queries.on(target, f"rm -f {path}")


@contextmanager
def _ssh(target: Target, command: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Run a command on the machine, and give its stdin, and what it prints.

    Raises:
        MinipcError: it failed; contains why.
    """
    config = ssh.write_config([(target.alias, target.data)])
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        running = subprocess.Popen(
            ["ssh", "-F", str(config), target.alias, "--", command], stdin=subprocess.PIPE, stdout=output, stderr=errors
        )
        try:
            if running.stdin is None:
                raise CouldNotVerifyError("ssh has no stdin")
            yield running.stdin, output
            running.stdin.close()
            code = running.wait(_TIME_LIMIT_S)
        except BrokenPipeError:
            code = running.wait(60) or 1
        except BaseException:
            # Without this, the end of the stream would be the end of the transaction.
            running.kill()
            running.wait(60)
            raise
        if code:
            errors.seek(0)
            said = reason(errors.read().decode(errors="replace"))
            raise MinipcError(f"{target.alias}: {said}", "nothing was changed; correct the cause and run it again")


# --- where a dump comes from -----------------------------------------------------------------------------------------


def from_server(url: str, password: Secret | None) -> Iterator[bytes]:
    """Dump a database with pg_dump of this computer, and yield the lines.

    Args:
        url: `postgresql://USER@HOST:PORT/DATABASE`, without a password.
        password: None: that of PGPASSWORD or ~/.pgpass.

    Raises:
        RefusedError: the URL contains a password.
        MinipcError: pg_dump failed, such as for a server newer than itself.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgres", "postgresql") or not parts.hostname or not parts.path.strip("/"):
        raise RefusedError("--from is not postgresql://USER@HOST:PORT/DATABASE", "correct it; nothing was changed")
    if parts.password is not None:
        raise RefusedError(
            "the URL contains a password, which every user of this computer can see",
            "remove it: the password is asked for, or taken from PGPASSWORD or ~/.pgpass; change it, too",
        )
    prerequisites.ensure_postgres_client()
    environment = {
        **clean_environment(),
        **{key: value for key, value in os.environ.items() if key in ("PGPASSWORD", "PGPASSFILE", "PGSSLROOTCERT")},
        "PGHOST": parts.hostname,
        "PGPORT": str(parts.port or 5432),
        "PGUSER": unquote(parts.username or ""),
        "PGDATABASE": unquote(parts.path.strip("/")),
        "PGTZ": "UTC",
        **{f"PG{key.upper()}": value for key, value in parse_qsl(parts.query) if key in ("sslmode", "sslrootcert")},
    }
    if password:
        environment["PGPASSWORD"] = password.reveal()
    yield from _output(["pg_dump", "--format=plain", "--encoding=UTF8", "--no-password", *_DUMP], environment)


def from_file(path: Path, target: Target) -> Iterator[bytes]:
    """Yield the lines of a dump: custom or tar format of pg_dump, or SQL, plain or gzip.

    Args:
        target: its pg_restore reads pg_dump's own formats: this computer's may be older than the dump, or missing.

    Raises:
        MinipcError: pg_restore failed, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(5)
        if start == b"PGDMP" or tarfile.is_tarfile(path):
            config = ssh.write_config([(target.alias, target.data)])
            command = ["ssh", "-F", str(config), target.alias, "--", *_PG_RESTORE, "--file=-", *_DUMP]
            with path.open("rb") as archive:
                yield from _output(command, clean_environment(), archive)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as lines:
                yield from lines
        else:
            with path.open("rb") as lines:
                yield from lines
    except (OSError, EOFError) as error:
        raise MinipcError(f"{path} cannot be read: {error}", "check the file; nothing was imported") from None


def _output(argv: list[str], environment: Mapping[str, str], stdin: IO[bytes] | None = None) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as errors:
        running = subprocess.Popen(
            argv, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=dict(environment)
        )
        try:
            yield from running.stdout or ()
            code = running.wait(60)
        finally:
            running.kill()
        if code:
            errors.seek(0)
            said = reason(errors.read().decode(errors="replace"))
            raise MinipcError(
                f"{'pg_restore' if stdin else argv[0]} failed: {said}",
                "nothing was imported; correct the cause and run it again",
            )


# --- files -----------------------------------------------------------------------------------------------------------


def folder(target: Target, service: Service, volume: str, source: Path, *, again: bool = False) -> Compared:
    """Copy the files of a folder into a volume, as the service's user, and compare both sides.

    Files that are the same are not sent. Symbolic links and special files are left out.

    Args:
        again: replace different files and remove files that the folder does not have.

    Raises:
        RefusedError: the volume is not empty.
        MinipcError: the files do not fit into it, or could not be written.
    """
    place = str(VOLUMES / service.name / volume)
    run = f"setpriv --reuid={service.user} --regid={service.user} --clear-groups -- "
    missing = f"there is no {place}; converge the machine first: minipc apply"
    queries.on(target, f"test -d {shlex.quote(place)} || {{ echo {shlex.quote(missing)} >&2; exit 1; }}")
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    limit = service.volumes[volume].size_gb * 1024**3
    if size > limit:
        raise RefusedError(
            f"{source} has {size} bytes, and the volume {volume} may hold {limit}", "raise size_gb; nothing was copied"
        )
    here = import_sums.files(str(source))
    odd = [name for name in here if not name.isprintable()]
    if odd:
        raise RefusedError(f"{source} has files whose names are not text, such as {odd[0]!r}", "rename them")
    there = _files_there(target, run, place)
    if there and not again:
        raise RefusedError(
            f"the volume {volume} of {service.name} has {len(there)} files", "--again replaces what it contains"
        )
    extra = [name for name in there if name not in here]
    if extra:
        names = "\0".join(extra)
        queries.on(target, f"cd {shlex.quote(place)} && {run} xargs -0 rm -f --", names)
    wanted = [name for name, about in here.items() if there.get(name) != about]
    if wanted:
        with _ssh(target, f"{run} tar --extract --directory {shlex.quote(place)} --no-same-owner") as (stdin, _):
            _pack(source, wanted, stdin)
    arrived = _files_there(target, run, place)
    wrong = [name for name in {*here, *arrived} if here.get(name) != arrived.get(name)]
    problem = f"{len(wrong)} files differ, such as {sorted(wrong)[0]!r}" if wrong else ""
    links = sum(path.is_symlink() for path in source.rglob("*"))
    return Compared(volume, len(here), problem, f"{links} symbolic links were left out" if links else "")


def _files_there(target: Target, run: str, place: str) -> dict[str, str]:
    command = shlex.join(["/usr/bin/python3", "-I", "-c", inspect.getsource(import_sums), "files", place])
    text = queries.on(target, f"{run} {command}", timeout_s=_TIME_LIMIT_S)
    found: dict[str, str] = json.loads(text)
    return found


def _pack(source: Path, names: Iterable[str], output: IO[bytes]) -> None:
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            entry = tar.gettarinfo(source / name, name)
            entry.mode = 0o600
            with (source / name).open("rb") as file:
                tar.addfile(entry, file)
