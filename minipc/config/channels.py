"""Channels of the alerts: where Alertmanager sends its messages, as data in `alertmanager_channels`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from minipc.config.types import Domain, Port
from minipc.core.strict import Strict

Priority = Literal["P1", "P2", "P3"]
ALL: list[Priority] = ["P1", "P2", "P3"]
SecretRule = Literal["url", "line"]
EmailAddress = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]

SINCE = {"slack": "0.1", "email": "0.1", "webhook": "0.1", "pushover": "0.1", "telegram": "0.24", "discord": "0.25"}
"""Kind -> the version of Alertmanager that introduced it. Debian 13 has 0.28."""


def _not_taken(name: str) -> str:
    if name in ("nobody", "watchdog"):
        raise ValueError("a receiver of minipc itself has this name; choose another one")
    return name


class Channel(Strict):
    """A channel.

    Attributes:
        name: the receiver in Alertmanager, and part of the names of its secrets.
        priorities: of the alerts that it gets.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$"), AfterValidator(_not_taken)]
    priorities: Annotated[list[Priority], Field(min_length=1)] = Field(default=ALL)

    @property
    def secrets(self) -> dict[str, SecretRule]:
        """Return the secrets that it needs: the last part of the name -> the rule for its value."""
        return {"url": "url"}


class SlackChannel(Channel):
    """An incoming webhook of Slack; `channel` overrides its own "#channel" or "@person"."""

    kind: Literal["slack"]
    channel: Annotated[str, Field(pattern=r"^[#@][^\s]+$")] | None = None


class WebhookChannel(Channel):
    """A program that takes Alertmanager's JSON (format version 4)."""

    kind: Literal["webhook"]


class NtfyChannel(Channel):
    """A topic of an ntfy server, 2.10 or later, which turns Alertmanager's JSON into a text."""

    kind: Literal["ntfy"]


class DiscordChannel(Channel):
    """A webhook of Discord."""

    kind: Literal["discord"]


class EmailChannel(Channel):
    """A mail server; it must offer STARTTLS (or TLS from the start on port 465). Without `user` there is no login."""

    kind: Literal["email"]
    server: Domain
    port: Port
    user: str | None = None
    sender: EmailAddress
    to: EmailAddress

    @property
    def secrets(self) -> dict[str, SecretRule]:
        return {"password": "line"} if self.user else {}


class TelegramChannel(Channel):
    """A bot of Telegram that writes to a chat."""

    kind: Literal["telegram"]
    chat_id: int

    @property
    def secrets(self) -> dict[str, SecretRule]:
        return {"token": "line"}


class PushoverChannel(Channel):
    """An application of Pushover."""

    kind: Literal["pushover"]

    @property
    def secrets(self) -> dict[str, SecretRule]:
        return {"token": "line", "user_key": "line"}


def _known_kind(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind != "ntfy" and kind not in SINCE:
        versions = ", ".join(f"{name} (since {version})" for name, version in SINCE.items())
        raise ValueError(
            f"kind {kind!r} is not supported; allowed: ntfy (a webhook, ntfy server 2.10 or later), and of "
            f"Alertmanager, which is 0.28 in Debian 13: {versions}"
        )
    return value


AnyChannel = Annotated[
    Annotated[
        SlackChannel | WebhookChannel | NtfyChannel | DiscordChannel | EmailChannel | TelegramChannel | PushoverChannel,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_known_kind),
]
