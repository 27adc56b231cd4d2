"""Places many files at once: rendered before the first change, compared in one fact, validated, renamed into place.

Why not `files.template`: it takes three remote commands a file when nothing changes, writes in place, and a new file
is readable by everyone for a moment (pyinfra 3.10). See docs/decisions/0003-placing-files.md.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import secrets
import shlex
import tarfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from pyinfra import context, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, OperationError, StringCommand, operation
from pyinfra.api.operation import OperationMeta

from minipc import templates
from minipc.errors import ConfigError
from minipc.facts.files import FileContents, FileState, FileStates
from minipc.facts.memory import announce, announced
from minipc.halt import stop
from minipc.operations.revert import REVERT, clock_starts
from minipc.paths import ROOT

STAGE = "/var/lib/minipc/stage"


@dataclass(frozen=True)
class File:
    """A file to have on the machine.

    Attributes:
        template: name under `templates/<component>/`; rendered by Jinja2 when it ends in `.j2`, else taken as it is.
        path: absolute path on the machine.
        mode: octal digits without leading zero, such as "640".
        group: the owner's name when None.
        check: shell command that must exit 0 before the file is replaced; `{path}` is the candidate.
        values: more values for the template, on top of those given to `place`.
        content: instead of a template.
        secret: no diff is ever shown.
    """

    template: str
    path: str
    owner: str = "root"
    group: str | None = None
    mode: str = "644"
    check: str | None = None
    values: Mapping[str, Any] | None = None
    content: bytes | None = None
    secret: bool = False


def SecretFile(
    template: str, path: str, owner: str = "root", group: str | None = None, mode: str = "600", **more: Any
) -> File:
    """A file with secrets in it: 0600 unless told, no diff, only a short hash in the log."""
    return File(template, path, owner, group, mode, secret=True, **more)


def Content(
    content: bytes, path: str, owner: str = "root", group: str | None = None, mode: str = "644", **more: Any
) -> File:
    """A file whose content the deploy has at hand, without a template."""
    return File("", path, owner, group, mode, content=content, **more)


@dataclass(frozen=True)
class Directory:
    """A directory to have on the machine; its content is left alone."""

    path: str
    owner: str = "root"
    group: str | None = None
    mode: str = "755"


@dataclass(frozen=True)
class Absent:
    """A file that must not be there."""

    path: str


Entry = File | Directory | Absent


@dataclass(frozen=True)
class Placed:
    """What `place` returns: pyinfra's operation, the wanted state's hash, and its paths, for `unit(restart_on=…)`."""

    operation: OperationMeta
    digest: str
    paths: tuple[str, ...]

    def did_change(self) -> bool:
        """Whether a file was replaced; only known once the operation has run."""
        return self.operation.did_change()


def place(
    name: str,
    component: str,
    entries: Sequence[Entry],
    values: Mapping[str, Any] | None = None,
    change: str = "",
) -> Placed:
    """Has all entries on the machine, or changes none of the files when a check refuses one.

    Args:
        change: name of a change that has to be confirmed (`minipc.operations.revert`): the files that are replaced are
            remembered first, and the clock starts.

    A template that uses an undefined variable, or can't be rendered, ends the run before anything is changed.
    """
    try:
        rendered = [render(component, entry, values or {}) for entry in entries]
    except ConfigError as error:
        stop(error)
    paths = tuple(entry.path for entry in rendered)
    announce(context.host, FileStates, paths)
    return Placed(entries_present(name=name, entries=rendered, change=change), digest(rendered), paths)


def render(component: str, entry: Entry, values: Mapping[str, Any]) -> Entry:
    """The entry with its content filled in.

    Raises:
        ConfigError: names the template, the target and what is undefined.
    """
    if not isinstance(entry, File) or entry.content is not None:
        return entry
    folder = ROOT / "templates" / component
    try:
        if not entry.template.endswith(".j2"):
            return replace(entry, content=(folder / entry.template).read_bytes())
        text = templates.environment(folder).get_template(entry.template).render({**values, **(entry.values or {})})
    except TemplateError as error:
        where = f"templates/{component}/{entry.template}"
        line = f" line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(
            f"{where}{line} for {entry.path}: {type(error).__name__}: {error.message}",
            "define the value in group_data/ or mend the template; nothing was changed",
        ) from None
    return replace(entry, content=text.encode())


def digest(entries: Iterable[Entry]) -> str:
    """Hash of the wanted state of all entries."""
    total = hashlib.sha256()
    for entry in entries:
        match entry:
            case File():
                total.update(f"{entry.path} {entry.owner} {entry.group} {entry.mode} {_sha256(entry)}\n".encode())
            case Directory() | Absent():
                total.update(f"{entry}\n".encode())
    return total.hexdigest()


@operation()
def entries_present(
    entries: Sequence[Entry], change: str = ""
) -> Generator[StringCommand | FileUploadCommand | FunctionCommand, None, None]:
    """Compares all entries in one fact, then uploads and installs what differs, atomically, file by file."""
    host = context.host
    states: dict[str, FileState] = host.get_fact(FileStates, paths=announced(host, FileStates))
    changed = [entry for entry in entries if not _is_as_wanted(entry, states.get(entry.path))]
    if not changed:
        return
    if context.state.config.DIFF:
        _show_diff(changed, states)
    for entry in changed:
        host.log(f"{_what_changes(entry, states.get(entry.path))}", logger.debug)

    files = [entry for entry in changed if isinstance(entry, File)]
    stage = f"{STAGE}/{secrets.token_hex(8)}"
    if files:
        # The stage is root's alone, so that the upload itself is never readable by others.
        yield StringCommand(f"install -d -m 700 {STAGE} {stage}")
        yield FileUploadCommand(io.BytesIO(_pack(files)), f"{stage}/files.tar")
    if change and _replaced(changed):
        yield clock_starts(change)
    yield StringCommand("sh", "-c", shlex.quote(_install_script(changed, stage, change)))


def _is_as_wanted(entry: Entry, state: FileState | None) -> bool:
    match entry:
        case Absent():
            return state is None
        case Directory():
            wanted = FileState("directory", entry.mode, entry.owner, entry.group or entry.owner)
            return state is not None and replace(state, sha256=None) == wanted
        case File():
            wanted = FileState("regular file", entry.mode, entry.owner, entry.group or entry.owner, _sha256(entry))
            return state == wanted


def _sha256(entry: File) -> str:
    return hashlib.sha256(_content(entry)).hexdigest()


def _content(entry: File) -> bytes:
    if entry.content is None:
        raise OperationError(f"{entry.path} was not rendered; use place()")
    return entry.content


def _what_changes(entry: Entry, state: FileState | None) -> str:
    match entry:
        case Absent():
            return f"remove {entry.path}"
        case Directory():
            return f"directory {entry.path} {entry.owner}:{entry.group or entry.owner} {entry.mode}"
        case File():
            before = state.sha256[:12] if state and state.sha256 else "absent"
            return f"place {entry.path} {before} -> {_sha256(entry)[:12]} {entry.owner} {entry.mode}"


def _pack(files: Sequence[File]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, entry in enumerate(files):
            member = tarfile.TarInfo(str(number))
            member.size = len(_content(entry))
            member.mode = 0o600
            tar.addfile(member, io.BytesIO(_content(entry)))
    return buffer.getvalue()


def _install_script(changed: Sequence[Entry], stage: str, change: str = "") -> str:
    """Candidates beside their targets, all checks, then the renames: a refused check replaces nothing."""
    prepare, checks, renames, candidates = [], [], [], []
    number = 0
    for entry in changed:
        target = shlex.quote(entry.path)
        if isinstance(entry, Absent):
            renames.append(f"rm -f -- {target}")
            continue
        ownership = f"-o {entry.owner} -g {entry.group or entry.owner} -m {entry.mode}"
        if isinstance(entry, Directory):
            prepare.append(f"install -d {ownership} -- {target}")
            continue
        folder, base = entry.path.rsplit("/", 1)
        candidate = shlex.quote(f"{folder}/.{base}.minipc-new")
        candidates.append(candidate)
        prepare.append(f"[ -d {shlex.quote(folder)} ] || install -d -m 755 -- {shlex.quote(folder)}")
        prepare.append(f"install {ownership} -- {stage}/{number} {candidate}")
        if entry.check:
            command = entry.check.replace("{path}", candidate)
            checks.append(f"({command}) >{stage}/check 2>&1 || refuse {target}")
        renames.append(f"mv -fT -- {candidate} {target}")
        number += 1
    head = ["set -eu", "umask 077"]
    if candidates:
        head += [
            f"cleanup() {{ rm -rf -- {stage} {' '.join(candidates)}; }}",
            "trap cleanup EXIT",
            "refuse() {",
            '  echo "refused: the check of $1 failed, nothing was replaced:" >&2',
            f"  cat {stage}/check >&2",
            "  exit 1",
            "}",
            f"tar -xf {stage}/files.tar -C {stage}",
        ]
        # The content reaches the disk before its name does: a power cut leaves the old file or the new one.
        checks.append(f"sync -- {' '.join(candidates)}")
    replaced = _replaced(changed)
    keep = [f"{REVERT} keep {change} {' '.join(replaced)}"] if change and replaced else []
    return "\n".join([*head, *prepare, *checks, *keep, *renames])


def _replaced(changed: Sequence[Entry]) -> list[str]:
    return [shlex.quote(entry.path) for entry in changed if not isinstance(entry, Directory)]


def _show_diff(changed: Sequence[Entry], states: Mapping[str, FileState]) -> None:
    host = context.host
    plain = [entry for entry in changed if isinstance(entry, File) and not entry.secret]
    existing = [entry.path for entry in plain if entry.path in states]
    current: dict[str, bytes] = host.get_fact(FileContents, paths=existing) if existing else {}
    for entry in changed:
        host.log(_what_changes(entry, states.get(entry.path)), logger.info)
        if not isinstance(entry, File):
            continue
        if entry.secret:
            logger.info("  (secret: content not shown)")
            continue
        before = current.get(entry.path, b"").decode(errors="replace").splitlines()
        after = _content(entry).decode(errors="replace").splitlines()
        for line in difflib.unified_diff(before, after, "on the machine", "wanted", n=2, lineterm=""):
            logger.info("  %s", line)
