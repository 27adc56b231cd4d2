"""The questions of `minipc init`: at most ten, each with a default and a reason. A person or a file answers them."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import click
import yaml
from pydantic import TypeAdapter, ValidationError

from minipc.config.schema import S3Settings, SftpSettings
from minipc.config.service import ImageName
from minipc.config.types import Domain, Host, UserName
from minipc.core.errors import ConfigError, RefusedError
from minipc.core.files import read_private

NONE = "none"


@dataclass(frozen=True)
class Login:
    """An account on a machine, as in `ssh you@192.168.1.10`."""

    account: str
    address: str

    def __str__(self) -> str:
        return f"{self.account}@{self.address}"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: the question; a description in braces is filled in when it is asked.
        reason: why the answer is needed, or what follows from it.
        default: names in braces are filled in, as in the text.
        hidden: whether the answer is a secret: not shown, not stored.
        kept: whether it is the default the next time.
    """

    text: str
    reason: str
    default: str
    check: Callable[[str], Any] = str
    hidden: bool = False
    kept: bool = True


def _valid(kind: Any, value: Any) -> str:
    """Return the value as a type of the configuration. Raises ValueError with what is allowed."""
    try:
        return str(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise ValueError(str(error.errors()[0].get("ctx", {}).get("error", error.errors()[0]["msg"]))) from None


def login(value: str) -> Login:
    """Return account and address. Raises ValueError."""
    account, at, address = value.strip().rpartition("@")
    if not at:
        raise ValueError(f"no account; allowed: ACCOUNT@ADDRESS; did you mean 'root@{value.strip()}'?")
    return Login(_valid(UserName, account), _valid(Host, address))


def _offsite(value: str) -> Login | dict[str, str] | None:
    """Return the account of the off-site host, or what describes a bucket or storage box; None for none.

    Raises:
        ValueError: it is neither.
    """
    if value.strip().startswith("sftp://"):
        return _storage_box(value.strip())
    if not value.strip().startswith("s3://"):
        return None if value.strip().lower() in (NONE, "no", "") else login(value)
    found = re.fullmatch(r"s3://([^@/]+)@([^@/]+)/([^/]+)/?", value.strip())
    if not found:
        raise ValueError("not a bucket; allowed: s3://REGION@ENDPOINT/BUCKET")
    s3 = dict(zip(("region", "endpoint", "bucket"), found.groups(), strict=True))
    _valid(S3Settings, s3)
    return s3


def _storage_box(value: str) -> dict[str, str]:
    """Return the setting `offsite_sftp` without its host keys. Raises ValueError."""
    found = re.fullmatch(r"sftp://([^@/]+)@([^@/:]+)(?::(\d+))?(/.+?)/?", value)
    if not found:
        raise ValueError("not a storage box; allowed: sftp://USER@HOST/FOLDER or sftp://USER@HOST:PORT/FOLDER")
    sftp = dict(zip(("user", "host", "port", "path"), found.groups(default="22"), strict=True))
    for key, part in SftpSettings.model_fields.items():
        if key in sftp:
            _valid(Annotated[part.annotation, *part.metadata], int(sftp[key]) if key == "port" else sftp[key])
    return sftp


def _service(value: str) -> str | Path | None:
    """Return the compose file or the name of the image; None for no service yet."""
    value = value.strip()
    if value.lower() in (NONE, "no"):
        return None
    if value.endswith((".yml", ".yaml")):
        path = Path(value).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        return path.resolve()
    return _valid(ImageName, value)


def _fingerprint(value: str) -> str:
    """Return a fingerprint, "yes" or "no". Raises ValueError."""
    if value.strip().lower() in ("yes", "y", "no", "n"):
        return "yes" if value.strip().lower().startswith("y") else "no"
    if not re.match(r"^SHA256:[A-Za-z0-9+/]{43}$", value.strip()):
        raise ValueError(
            "allowed: yes, no, or the fingerprint itself: SHA256: and 43 characters, as "
            "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it on the machine's screen"
        )
    return value.strip()


def _fingerprints(value: str) -> str:
    """Return "yes" or "no", or fingerprints with spaces between them. Raises ValueError."""
    return " ".join(_fingerprint(each) for each in value.replace(",", " ").split()) or "no"


def _compose_file() -> str:
    return next((name for name in ("compose.yaml", "docker-compose.yml") if Path(name).is_file()), NONE)


QUESTIONS: Mapping[str, Question] = {
    "machine": Question(
        "Account and address of the mini PC",
        "The account that Debian's installer created, or root if it has your key.",
        f"{getpass.getuser()}@192.168.1.10",
        login,
    ),
    "fingerprint": Question(
        "{address} shows the host key {found}. Does the mini PC's own screen show the same?",
        "It proves that this is your machine. On its screen: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        "no",
        _fingerprint,
        kept=False,
    ),
    "password": Question(
        "Password of {login}",
        "Used once, to add your public key to root's keys. It is not stored.",
        "",
        hidden=True,
    ),
    "root_password": Question(
        "Password of root on {login}",
        "That account may not use sudo. Used once; it is not stored.",
        "",
        hidden=True,
    ),
    "offsite": Question(
        "Account and address of the off-site host, or s3://REGION@ENDPOINT/BUCKET, or sftp://USER@HOST:PORT/FOLDER, "
        "or none",
        "A bucket, a storage box, or a small Debian 13 machine in another place keeps the backups. Without them, no "
        "data outlives the mini PC.",
        NONE,
        _offsite,
    ),
    "offsite_fingerprint": Question(
        "{address} shows the host key {found}. Is it the off-site host's, or the storage box's?",
        "Compare it with its screen, or with the page of its provider. A storage box shows several.",
        "no",
        _fingerprints,
        kept=False,
    ),
    "offsite_password": Question(
        "Password of {login}",
        "Used once, to add your public key to root's keys. It is not stored.",
        "",
        hidden=True,
    ),
    "service": Question(
        "Image of your service (such as ghcr.io/you/shop), a compose file, or none",
        "It becomes services/NAME.yaml, complete and commented. Add more with `minipc service new`.",
        _compose_file(),
        _service,
    ),
    "domain": Question(
        "Public name of {service}",
        "Certificates are issued for it, so its DNS records must point to the machine. example.org is only an example.",
        "{service}.example.org",
        lambda value: _valid(Domain, value.strip()),
    ),
    "dns_token": Question(
        "API token for the zone {zone} at Cloudflare",
        "With it minipc sets the records; it needs the permission Zone.DNS Edit. Empty: you keep them by hand.",
        "",
        hidden=True,
    ),
}


@dataclass
class Questions:
    """Ask, or take the answers of a file.

    Attributes:
        answers: from a file; None: ask on the terminal.
        before: the answers of the last time, which are the defaults now.
        given: the answers of this time, without secrets.
    """

    answers: Mapping[str, str] | None
    before: Mapping[str, str] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)

    def ask(self, key: str, **names: str) -> Any:
        """Return the checked answer.

        Args:
            names: what stands for the braces in the question.

        Raises:
            ConfigError: the answer in the file is wrong.
        """
        question = QUESTIONS[key]
        default = self.before.get(key, question.default.format(**names))
        if self.answers is None:
            value, text = self._prompt(question, default, names)
        else:
            value, text = self._from_file(key, default)
        if question.kept and not question.hidden:
            self.given[key] = text
        return value

    def _prompt(self, question: Question, default: str, names: Mapping[str, str]) -> tuple[Any, str]:
        typed: list[str] = []

        def checked(text: str) -> Any:
            typed.append(text)
            try:
                return question.check(text)
            except ValueError as error:
                raise click.UsageError(str(error)) from None  # click shows it and asks again

        click.echo(f"\n{question.reason}")
        text = question.text.format(**names)
        value = click.prompt(
            text, default=default, hide_input=question.hidden, value_proc=checked, show_default=bool(default)
        )
        return value, typed[-1]

    def _from_file(self, key: str, default: str) -> tuple[Any, str]:
        text = (self.answers or {}).get(key, default)
        try:
            return QUESTIONS[key].check(text), text
        except ValueError as error:
            shown = "" if QUESTIONS[key].hidden else f" = {text!r}"
            raise ConfigError(f"{key}{shown}: {error}", "correct the answers; nothing was changed") from None


def read_answers(path: Path) -> dict[str, str]:
    """Return the answers of a YAML file: keys of QUESTIONS. What it does not have gets its default.

    Raises:
        ConfigError: the file cannot be read, or has an unknown key or a value that is not text.
        SecretError: it contains a secret and others can read it.
    """
    try:
        content = yaml.safe_load(path.read_bytes()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "give a YAML file with `key: value` lines") from None
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(f"{path}: each line must be `key: text`", f"the keys are: {', '.join(QUESTIONS)}")
    unknown = [str(key) for key in content if key not in QUESTIONS]
    if unknown:
        raise ConfigError(f"{path}: unknown {', '.join(unknown)}", f"the keys are: {', '.join(QUESTIONS)}")
    if any(QUESTIONS[key].hidden for key in content):
        read_private(path, "the file with the answers")
    return {str(key): value for key, value in content.items()}


def demand_answers(terminal: bool) -> None:
    """Raise RefusedError where nobody can answer."""
    if not terminal:
        raise RefusedError("there is no terminal to ask on", "give the answers: `minipc init --answers FILE.yaml`")


def own_name(service: str | Path) -> str:
    """Return the name of a service, from its image or from the folder of its compose file."""
    last = service.parent.name if isinstance(service, Path) else service.rsplit("/", 1)[-1]
    name = re.sub(r"[^a-z0-9-]+", "-", os.path.basename(last).lower()).strip("-0123456789")
    return name[:30] or "service"
