"""Set up and check the storage box that keeps the backups, from the controller.

minipc backup key      minipc backup host-keys [HOST:PORT]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import urlsplit

from minipc.config.offsite import storage_box_of
from minipc.core.environment import Environment
from minipc.core.errors import ConfigError, MinipcError, RefusedError
from minipc.remote.inventory import Target, the_target
from minipc.secrets import SecretStore, load
from minipc.secrets.catalogue import SFTP_KEY
from minipc.secrets.ed25519 import public_key
from minipc_machine import storage_box
from minipc_machine.program import FailedError
from minipc_machine.storage_box import HOWTO, Content, StorageBox
from playbooks.init_questions import Questions

T = TypeVar("T")


def authorized_key(store: SecretStore) -> str:
    """Return the line that the box must have among its authorized keys. Raises SecretError if there is no key yet."""
    return f"{public_key(store.get(SFTP_KEY))} minipc"


def shown_host_keys(environment: Environment, server: str) -> list[str]:
    """Return the host keys that a box shows, compared with nothing.

    Args:
        server: HOST or HOST:PORT; empty: of the storage box in the settings.

    Raises:
        ConfigError: there is no storage box in the settings, or the port is not one.
        MinipcError: the server cannot be reached.
    """
    if not server:
        box = _box(the_target(environment, None))
        return _asked(lambda: storage_box.host_keys(box.host, box.port))
    try:
        parts = urlsplit(f"//{server}")
        host, port = parts.hostname or "", parts.port or 22
    except ValueError:
        host, port = "", 0
    if not host:
        raise ConfigError(f"{server!r} is not a server", "give HOST or HOST:PORT, with a port of 1 to 65535")
    return _asked(lambda: storage_box.host_keys(host, port))


def examine(target: Target) -> Content:
    """Check the box with the key in the secrets. Raises MinipcError with what is wrong."""
    box = _box(target)
    with _key_file(target) as key:
        return _asked(lambda: storage_box.examine(box, key))


def demand_empty(target: Target) -> None:
    """Raise ConfigError if the folder in the box has anything in it, MinipcError if it cannot be used."""
    box, names = _box(target), examine(target).names
    if names:
        raise ConfigError(
            f"the folder {box.path} in the storage box contains {', '.join(names[:3])}, which the old passphrases open",
            "set a new path in offsite_sftp, and run this again",
        )


def confirmed(questions: Questions, answer: dict[str, str]) -> dict[str, object]:
    """Return the setting `offsite_sftp`: where the box is, and its host keys, which a person has compared.

    Raises:
        RefusedError: the host keys are not confirmed.
        MinipcError: the box cannot be reached.
    """
    host, port = answer["host"], int(answer["port"])
    keys = _asked(lambda: storage_box.host_keys(host, port))
    shown = [storage_box.fingerprint(each).split()[1] for each in keys]
    told = questions.ask("offsite_fingerprint", address=f"{host} port {port}", found=", ".join(shown))
    # Only somebody who sees the question can say yes to it.
    if set(told.split()) != set(shown) and (told != "yes" or questions.answers is not None):
        raise RefusedError(
            f"{host} port {port} shows the host keys {', '.join(shown)}, which are not confirmed",
            "compare them with your provider's page; nothing was changed",
        )
    return {"host": host, "port": port, "user": answer["user"], "path": answer["path"], "host_keys": keys}


def _box(target: Target) -> StorageBox:
    box = storage_box_of(target.settings)
    if box is None:
        raise ConfigError("the off-site side is not a storage box", "set offsite_kind and offsite_sftp")
    return box


@contextmanager
def _key_file(target: Target) -> Iterator[str]:
    """Write the mini PC's key into a private file for as long as the block lasts."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "key"
        file.touch(mode=0o600)
        file.write_text(load(target.settings.environment, [SFTP_KEY])[SFTP_KEY].reveal(), encoding="utf-8")
        yield str(file)


def _asked(question: Callable[[], T]) -> T:
    try:
        return question()
    except FailedError as error:
        raise MinipcError(str(error), HOWTO) from None
