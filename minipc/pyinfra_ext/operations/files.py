"""Place many files at once: rendered before the first change, compared in one fact, validated, renamed into place.

`files.template` is not used, because it needs three remote commands for each unchanged file, writes in place, and a new
file is readable by everyone for a moment (pyinfra 3.10). See docs/decisions/0003-placing-files.md.
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

from minipc.core import templating
from minipc.core.errors import ConfigError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext.abort import stop
from minipc.pyinfra_ext.facts.files import FileContents, FileState, FileStates
from minipc.pyinfra_ext.facts.memory import announce, announced, recall
from minipc.pyinfra_ext.operations.revert import REVERT, clock_starts
from minipc.pyinfra_ext.progress import note_placed

STAGE = "/var/lib/minipc/stage"


@dataclass(frozen=True)
class File:
    """A file that must exist on the machine.

    Attributes:
        template: name in `templates/<component>/`, or `<other component>/<name>`; rendered by Jinja2 if it ends in
            `.j2`, otherwise copied unchanged.
        path: absolute path on the machine.
        mode: octal digits without leading zero, such as "640".
        group: the owner's name when None.
        check: shell command that must exit 0 before the file is replaced; `{path}` is the candidate.
        values: more values for the template, on top of those given to `place`.
        content: used instead of a template.
        secret: never show a diff.
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
    """Return a file with secrets: mode 0600 by default, no diff, only a short hash in the log."""
    return File(template, path, owner, group, mode, secret=True, **more)


def Content(
    content: bytes, path: str, owner: str = "root", group: str | None = None, mode: str = "644", **more: Any
) -> File:
    """Return a file with the given content, without a template."""
    return File("", path, owner, group, mode, content=content, **more)


@dataclass(frozen=True)
class Directory:
    """A directory that must exist on the machine; its content is not changed."""

    path: str
    owner: str = "root"
    group: str | None = None
    mode: str = "755"


@dataclass(frozen=True)
class Absent:
    """A file that must not exist."""

    path: str


Entry = File | Directory | Absent


@dataclass(frozen=True)
class Placed:
    """The result of `place`, for `unit(restart_on=…)`: pyinfra's operation, the hash of the wanted state, the paths."""

    operation: OperationMeta
    digest: str
    paths: tuple[str, ...]

    def did_change(self) -> bool:
        """Return whether a file was replaced. Known only after the operation has run."""
        return self.operation.did_change()


def place(
    name: str,
    component: str,
    entries: Sequence[Entry],
    values: Mapping[str, Any] | None = None,
    change: str = "",
) -> Placed:
    """Place all entries on the machine. If a check refuses a file, replace none.

    A template that uses an undefined variable or cannot be rendered ends the run before anything is changed.

    Args:
        change: name of a change that must be confirmed (see `operations.revert`). The machine first copies the files
            that are replaced and starts a timer.
    """
    try:
        rendered = [render(component, entry, values or {}) for entry in entries]
    except ConfigError as error:
        stop(error)
    paths = tuple(entry.path for entry in rendered)
    announce(context.host, FileStates, paths)
    note_placed(entry.path for entry in rendered if isinstance(entry, File))
    return Placed(entries_present(name=name, entries=rendered, change=change), digest(rendered), paths)


def render(component: str, entry: Entry, values: Mapping[str, Any]) -> Entry:
    """Return the entry with its content.

    Raises:
        ConfigError: the message names the template, the target and the undefined variable.
    """
    if not isinstance(entry, File) or entry.content is not None:
        return entry
    folder = ROOT / "templates" / component
    try:
        if not entry.template.endswith(".j2"):
            source = folder / entry.template
            shared = folder.parent / entry.template
            return replace(entry, content=(source if source.exists() else shared).read_bytes())
        text = templating.environment(folder).get_template(entry.template).render({**values, **(entry.values or {})})
    except TemplateError as error:
        where = f"templates/{component}/{entry.template}"
        line = f" line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(
            f"{where}{line} for {entry.path}: {type(error).__name__}: {error.message}",
            "define the value in group_data/ or fix the template; nothing was changed",
        ) from None
    return replace(entry, content=text.encode())


def digest(entries: Iterable[Entry]) -> str:
    """Return the hash of the wanted state of all entries."""
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
    """Compare all entries in one fact, then upload and install those that differ; each file atomically."""
    host = context.host
    states: dict[str, FileState] = recall(FileStates, paths=announced(host, FileStates))
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
        # Only root can read the stage, so others cannot read the upload.
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
    """Return the script: new files next to their targets, then all checks, then the renames."""
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
        # The content is synced before the rename, so a power cut leaves the old file or the new one.
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
