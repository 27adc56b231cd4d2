"""Moving a service in: which statements of a dump are run, how both sides are compared, which input is refused."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from minipc.cli import service as cli
from minipc.config.service import Service
from minipc.core.errors import CouldNotVerifyError, MinipcError, RefusedError
from minipc.secrets.secret import Secret
from minipc.services import importing
from minipc_machine import import_sums

DUMP = """\
\\restrict abc
SET statement_timeout = 0;
CREATE SCHEMA public;
COMMENT ON SCHEMA public IS 'standard';
CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;
COMMENT ON EXTENSION citext IS 'data type';
CREATE SCHEMA billing;
ALTER SCHEMA billing OWNER TO old;
CREATE FUNCTION public.f() RETURNS void LANGUAGE sql AS $_$
GRANT SELECT ON x TO y;
\\! not a command here
$_$;
CREATE TABLE public."Users" (id integer, at timestamptz);
ALTER TABLE public."Users" OWNER TO old;
COPY public."Users" (id, at) FROM stdin;
1\t2026-11-30 10:00:00+00
2\tGRANT ALL ON a TO b;
\\\\.
\\.
COPY billing.invoices FROM stdin;
\\.
REVOKE ALL ON TABLE public."Users" FROM old;
GRANT SELECT ON TABLE public."Users" TO old;
ALTER DEFAULT PRIVILEGES FOR ROLE old GRANT SELECT ON TABLES TO reader;
\\unrestrict abc
"""


def shop(**changes: object) -> Service:
    return Service.model_validate(
        {
            "name": "shop",
            "image": "a",
            "processes": {"web": {}},
            "user": os.getuid() or 65534,
            "postgres": {"database": "shop"},
            "volumes": {"uploads": {"mount": "/data", "size_gb": 1, "data_class": "must recover"}},
            **changes,
        }
    )


def lines(text: str) -> list[bytes]:
    return text.encode().splitlines(keepends=True)


def test_what_this_project_decides_is_left_out():
    taken = importing.Filter()
    run = b"".join(taken.lines(lines(DUMP))).decode()
    left_out = set(DUMP.splitlines()) - set(run.splitlines())
    assert left_out == {
        "\\restrict abc",
        "\\unrestrict abc",
        "CREATE SCHEMA public;",
        "COMMENT ON SCHEMA public IS 'standard';",
        "CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;",
        "COMMENT ON EXTENSION citext IS 'data type';",
        "ALTER SCHEMA billing OWNER TO old;",
        'ALTER TABLE public."Users" OWNER TO old;',
        'REVOKE ALL ON TABLE public."Users" FROM old;',
        'GRANT SELECT ON TABLE public."Users" TO old;',
        "ALTER DEFAULT PRIVILEGES FOR ROLE old GRANT SELECT ON TABLES TO reader;",
    }
    assert taken.extensions == {"citext"}


def test_rows_are_counted_and_summed_by_table():
    taken = importing.Filter()
    list(taken.lines(lines(DUMP)))
    (columns, users), (_, invoices) = taken.tables['public."Users"'], taken.tables["billing.invoices"]
    assert (columns, users.count, invoices.count) == ("(id, at)", 3, 0)
    rows = [b"\\\\.", b"2\tGRANT ALL ON a TO b;", b"1\t2026-11-30 10:00:00+00"]
    assert import_sums.rows(rows).checksum == users.checksum  # in another order
    assert import_sums.rows(rows[:2]).checksum != users.checksum
    assert not taken.foreign


def test_times_of_another_zone_are_noticed():
    taken = importing.Filter()
    list(taken.lines(lines("COPY t FROM stdin;\n1\t2026-11-30 10:00:00.5+02\n\\.\n")))
    assert taken.foreign == {"t"}
    rows = taken.tables["t"][1]
    assert importing._compare("t", rows, {"count": 1, "checksum": "?"}, foreign=True).gap.startswith("checksum: ")
    assert importing._compare("t", rows, {"count": 0}, foreign=True).problem == "1 rows were sent, 0 arrived"


def test_a_difference_is_a_problem():
    rows = import_sums.rows([b"1"])
    assert not importing._compare("t", rows, {"count": 1, "checksum": rows.checksum}, foreign=False).problem
    other = import_sums.rows([b"2"])
    assert "checksum" in importing._compare("t", rows, {"count": 1, "checksum": other.checksum}, foreign=False).problem
    assert "arrived" in importing._compare("t", rows, {}, foreign=False).problem


@pytest.mark.parametrize("command", ["\\! rm -rf /", "\\connect other", "\\copy t from program 'x'", "\\i file"])
def test_a_dump_cannot_run_programs(command):
    with pytest.raises(MinipcError, match="contains a command of psql"):
        list(importing.Filter().lines(lines(f"SELECT 1;\n{command}\n")))


def test_a_dump_that_was_cut_off_is_refused():
    with pytest.raises(MinipcError, match="ends within the table t"):
        list(importing.Filter().lines(lines("COPY t FROM stdin;\n1\n")))


def test_sql_is_read_plain_and_compressed(tmp_path):
    for name, content in (("a.sql", b"SELECT 1;\n"), ("a.sql.gz", gzip.compress(b"SELECT 1;\n"))):
        (tmp_path / name).write_bytes(content)
        assert list(importing.from_file(tmp_path / name, None)) == [b"SELECT 1;\n"]
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"SELECT 1;\n" * 1000)[:20])
    with pytest.raises(MinipcError, match="cannot be read"):
        list(importing.from_file(tmp_path / "cut.gz", None))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:hunter2@db/shop", "contains a password, which every user"),
        ("mysql://me@db/shop", "is not postgresql://"),
        ("postgresql://me@db", "is not postgresql://"),
        ("shop", "is not postgresql://"),
    ],
)
def test_an_address_that_cannot_be_used(url, said):
    with pytest.raises(RefusedError, match=said) as caught:
        list(importing.from_server(url, None))
    assert "hunter2" not in str(caught.value)


def test_a_password_is_never_an_argument(monkeypatch):
    seen = {}

    def popen(argv: list[str], **options: object) -> Iterator[bytes]:
        seen.update(argv=argv, environment=options["env"])
        raise OSError("stop here")

    monkeypatch.setattr(importing.prerequisites, "ensure_postgres_client", lambda: None)
    monkeypatch.setattr(importing.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="stop here"):
        list(importing.from_server("postgresql://me@db:5433/shop?sslmode=require", Secret("a.b", "hunter2")))
    assert "hunter2" not in " ".join(seen["argv"])
    assert seen["environment"]["PGPASSWORD"] == "hunter2"
    assert (seen["environment"]["PGPORT"], seen["environment"]["PGSSLMODE"]) == ("5433", "require")


def test_a_database_that_is_not_empty_is_refused(monkeypatch):
    monkeypatch.setattr(importing.queries, "tables", lambda target, name: {("public", "users")})
    target = SimpleNamespace(alias="mini")
    with pytest.raises(RefusedError, match="the database shop of mini is not empty: it has users"):
        list(importing.database(target, shop(), Secret("a.b", "x"), []))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A machine that is this computer, without another user; returns source and volume."""

    def on(target: object, command: str, stdin: str = "", timeout_s: float = 0) -> str:
        done = subprocess.run(["bash", "-c", local(command)], input=stdin.encode(), capture_output=True, timeout=60)
        if done.returncode:
            raise CouldNotVerifyError(done.stderr.decode())
        return done.stdout.decode()

    def local(command: str) -> str:
        user = shop().user
        run = f"setpriv --reuid={user} --regid={user} --clear-groups -- "
        return command.replace(run, "").replace("/usr/bin/python3", sys.executable)

    real = subprocess.Popen
    monkeypatch.setattr(importing.queries, "on", on)
    monkeypatch.setattr(importing, "VOLUMES", tmp_path)
    monkeypatch.setattr(importing.ssh, "write_config", lambda hosts: "config")
    monkeypatch.setattr(
        importing.subprocess, "Popen", lambda argv, **more: real(["bash", "-c", local(argv[-1])], **more)
    )
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a/one.txt").write_text("1")
    (source / "zwei ü.txt").write_text("2")
    return source, tmp_path / "shop/uploads"


def copy(source: Path, *, again: bool = False, **changes: object) -> importing.Compared:
    return importing.folder(SimpleNamespace(alias="mini", data={}), shop(**changes), "uploads", source, again=again)


def test_files_arrive_and_are_compared(here):
    source, volume = here
    volume.mkdir(parents=True)
    assert copy(source) == importing.Compared("uploads", 2)
    assert (volume / "a/one.txt").read_text() == "1"
    with pytest.raises(RefusedError, match="the volume uploads of shop has 2 files"):
        copy(source)
    (source / "a/one.txt").write_text("3")
    (source / "zwei ü.txt").unlink()
    (source / "link").symlink_to("/etc/passwd")
    assert copy(source, again=True) == importing.Compared("uploads", 1, gap="1 symbolic links were left out")
    assert import_sums.files(str(volume)) == import_sums.files(str(source))


def test_files_that_cannot_be_copied(here):
    source, volume = here
    with pytest.raises(CouldNotVerifyError, match="converge the machine first"):
        copy(source)
    volume.mkdir(parents=True)
    with (source / "large").open("w") as file:
        file.truncate(2**30)
    with pytest.raises(RefusedError, match="has 1073741826 bytes, and the volume uploads may hold 1073741824"):
        copy(source)
    assert not list(volume.iterdir())


@pytest.mark.parametrize(
    "arguments", [[], ["--from", "postgresql://a@b/c", "--dump", __file__], ["--files", "/nonexistent"]]
)
def test_what_to_import_must_be_said(arguments):
    assert CliRunner().invoke(cli.service, ["import", "shop", *arguments]).exit_code == 2
