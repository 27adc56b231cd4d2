"""The records of one zone, by dns-lexicon: any DNS provider that it knows (docs/decisions/0049-dns-lexicon.md).

Lexicon sets no time limit and does not try again, so both are here. What it raises may refer to a request with its
credentials, so nothing here is raised while one of its errors is handled, and texts are shown without them.
"""

from __future__ import annotations

import errno
import importlib
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast
from urllib.parse import quote, quote_plus

import requests
from lexicon._private.providers import cloudflare
from lexicon.config import ConfigResolver
from lexicon.exceptions import AuthenticationError
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from minipc.core.errors import SecretError
from minipc.dns.address import connection_problem
from minipc.dns.records import DELAYS_S, DnsError, Record, Say, Sleep, holder_name, identity_in, silent

ATTEMPT_S = 60.0
"""Time limit of one operation, seconds; it may consist of several requests."""
LONGEST_WAIT_S = 300.0
"""Longest `Retry-After` that is waited for, seconds: Cloudflare blocks a client for that long."""
_SHOWN = 200  # characters of a server's answer
_HOLDER_TTL_S = 300

Result = TypeVar("Result")


class _Cloudflare(cloudflare.Provider):
    """Lexicon's provider, except that a change keeps a record's proxy, which lexicon's PUT ends.

    Attributes:
        details: what lexicon leaves out of the records that were listed, by record id: `proxied` and `comment`.
    """

    details: dict[str, dict[str, Any]]

    def _request(self, action: str = "GET", url: str = "/", *args: Any, **kwargs: Any) -> Any:
        payload = super()._request(action, url, *args, **kwargs)  # type: ignore[no-untyped-call]
        if action == "GET" and url.endswith("/dns_records"):
            self.details |= {item["id"]: item for item in payload["result"]}
        return payload

    def update_record(
        self,
        identifier: str | None = None,
        rtype: str | None = None,
        name: str | None = None,
        content: str | None = None,
    ) -> bool:
        """Change address and TTL. A comment that names the holder, from an earlier version of minipc, is removed."""
        changed = {"content": content, "ttl": self._get_lexicon_option("ttl")}
        if _holder_in_comment(self.details.get(str(identifier), {})):
            changed["comment"] = ""
        self._patch(f"/zones/{self.domain_id}/dns_records/{identifier}", changed)
        return True

    def zones(self) -> list[str]:
        """Return the names of the zones that the token reaches, at most 50."""
        return sorted(zone["name"] for zone in self._get("/zones", {"per_page": 50})["result"])


def _holder_in_comment(detail: Mapping[str, Any]) -> str | None:
    return identity_in(str(detail.get("comment") or ""))


class LexiconProvider:
    """The records of one zone. Nothing is asked before the first use.

    Args:
        name: lexicon's name of the provider, such as "cloudflare".
        zone: its domain, such as "example.org".
        credentials: the token (lexicon's `auth_token`), or a JSON object with several of lexicon's options.
        options: lexicon's options that are not secret.
        api_url: where the API answers, in place of the provider's own address.
        sleep: waits between attempts.
        say: told before each wait.

    Raises:
        SecretError: the credentials are not usable.
    """

    def __init__(
        self,
        name: str,
        zone: str,
        credentials: str,
        options: Mapping[str, str],
        api_url: str | None,
        *,
        sleep: Sleep = time.sleep,
        say: Say = silent,
    ) -> None:
        self.name = name
        self.zone = zone
        self._secrets = parse_credentials(credentials)
        self._options = dict(options)
        self._api_url = api_url
        self._sleep = sleep
        self._say = say
        self._details: dict[str, dict[str, Any]] = {}

    def zones(self) -> list[str]:
        """Return all zones that the credentials reach, where the provider tells: more than one is too many."""
        if self.name != "cloudflare":
            return [self.zone]
        return self._do("list the zones", lambda provider: provider.zones())

    def records(self) -> Sequence[Record]:
        """Return all records of the zone."""
        listed = self._listed()
        holders = {
            record.name: holder for record in listed if record.type == "TXT" and (holder := identity_in(record.content))
        }
        return [replace(record, holder=holders.get(holder_name(record.name), record.holder)) for record in listed]

    def create(self, record: Record) -> None:
        """Add a record. An existing one is not an error: an attempt may have arrived whose answer did not."""
        self._hold(record, None)
        self._create(record)

    def update(self, present: Record, wanted: Record) -> None:
        """Change holder, address and TTL. The holder comes first: a former one must not change the address back."""
        self._hold(wanted, present)
        self._update(present, wanted)

    def _create(self, record: Record) -> None:
        self._do(
            f"create {record}",
            lambda provider: provider.create_record(record.type, record.name, record.content),
            record.ttl_s,
        )

    def _update(self, present: Record, wanted: Record) -> None:
        self._do(
            f"change {present}",
            lambda provider: provider.update_record(present.id, wanted.type, wanted.name, wanted.content),
            wanted.ttl_s,
        )

    def _hold(self, record: Record, present: Record | None) -> None:
        """Write the holder's TXT record.

        Raises:
            DnsError: that name has a TXT record of somebody else, or the holder is no longer that of `present`.
        """
        if record.holder is None:
            return
        wanted = Record(holder_name(record.name), "TXT", f"minipc {record.holder}", _HOLDER_TTL_S)
        found = [each for each in self._listed() if (each.name, each.type) == (wanted.name, "TXT")]
        if not found:
            self._create(wanted)
            return
        holder = identity_in(found[0].content)
        if len(found) > 1 or holder is None:
            raise DnsError(
                f"{wanted} is not the one that minipc writes: {', '.join(each.content for each in found)}",
                f"remove it in {self.zone} and run again; {record} was not changed",
            )
        if holder == record.holder:
            return
        if present is not None and holder != present.holder:
            raise DnsError(
                f"the holder of {record} changed meanwhile: it is machine {holder}",
                f"look at it with `minipc dns show`, and run again; {record} was not changed",
            )
        self._update(found[0], wanted)

    def _listed(self) -> list[Record]:
        what = f"list the records of {self.zone}"
        items = self._do(what, lambda provider: provider.list_records())
        return [self._record(item, what) for item in items]

    def _record(self, item: Any, what: str) -> Record:
        fields = [item.get(key) for key in ("name", "type", "id")] if isinstance(item, dict) else [None]
        if not all(isinstance(value, str | int) and value for value in fields):
            raise DnsError(
                f"could not {what}: {self.name} did not answer as its API does",
                "check dns_api_url, and whether a proxy is in between",
            )
        name, kind, number = map(str, fields)
        detail = self._details.get(number, {})
        ttl = str(item.get("ttl"))
        return Record(
            name=name.lower().rstrip(".").removeprefix("@."),  # "@" is the zone itself
            type=kind,
            content=str(item.get("content") or "").strip('"'),
            ttl_s=int(ttl) if ttl.isascii() and ttl.isdigit() else 0,
            holder=_holder_in_comment(detail),
            proxied=bool(detail.get("proxied")),
            id=number,
        )

    def _open(self, ttl_s: int) -> Any:
        settings: dict[str, Any] = {
            "provider_name": self.name,
            "domain": self.zone,
            "ttl": ttl_s,
            self.name: self._options | self._secrets,
        }
        # Not `lexicon.client.Client`: it guesses the zone from a list that it downloads.
        module = importlib.import_module(f"lexicon._private.providers.{self.name}")
        provider_class = _Cloudflare if self.name == "cloudflare" else module.Provider
        provider = provider_class(ConfigResolver().with_dict(settings))  # type: ignore[no-untyped-call]
        if isinstance(provider, _Cloudflare):
            provider.details = self._details
        if self._api_url is not None:
            provider.api_endpoint = self._api_url
        provider.authenticate()
        return provider

    def _do(self, what: str, action: Callable[[Any], Result], ttl_s: int = 0) -> Result:
        for delay in (*DELAYS_S, None):
            result, error = _within(ATTEMPT_S, lambda: action(self._open(ttl_s)))
            if error is None:
                return cast(Result, result)
            failure = _failure(error)
            said = f"could not {what}: {self.name} {self._clean(failure.text)}"
            if failure.refused:
                raise SecretError(
                    said,
                    f"check dns_zone, and that the credentials may read and edit {self.zone}; "
                    f"`minipc secrets set` replaces them",
                )
            if failure.wait_s is None:
                raise DnsError(said, "look at the records with `minipc dns show`, fix the cause, and run it again")
            if failure.wait_s > LONGEST_WAIT_S:
                raise DnsError(f"{said} and asks to wait {failure.wait_s:.0f} s", "run it again after that time")
            if delay is None:
                raise DnsError(f"{said}, {len(DELAYS_S) + 1} times", "check the network, then run it again")
            wait = max(delay, failure.wait_s)
            self._say(f"{said}; trying again in {wait:.0f} s")
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _clean(self, text: str) -> str:
        """Return a text on one line, short and without any of the credentials."""
        visible = "".join(character if character.isprintable() else " " for character in text)
        for value in filter(None, self._secrets.values()):
            for written in (value, quote(value, safe=""), quote_plus(value)):
                visible = visible.replace(written, "…")
        return visible[:_SHOWN]


def parse_credentials(text: str) -> dict[str, str]:
    """Return lexicon's secret options: those of a JSON object, or else the text as `auth_token`.

    Raises:
        SecretError: neither is possible.
    """
    text = text.strip()
    if not text.startswith("{"):
        values: Any = {"auth_token": text} if " " not in text else None
    else:
        try:
            values = json.loads(text)
        except ValueError:
            values = None
    if not isinstance(values, dict) or not all(_is_credential(value) for value in values.values()):
        raise SecretError(
            "the DNS provider's credentials are neither a token nor a JSON object of texts, or contain characters "
            "that no credential has",
            "set the secret again; docs/reference/dns.md shows both forms",
        )
    return values


def _is_credential(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


@dataclass(frozen=True)
class _Failure:
    """Why an attempt failed.

    Attributes:
        text: continues "the provider …"; may contain credentials.
        wait_s: shortest wait before another attempt, seconds; None: another attempt would not help.
        refused: the credentials do not suffice.
    """

    text: str
    wait_s: float | None = None
    refused: bool = False


def _failure(error: Exception) -> _Failure:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status == 429:
            return _Failure("limits the rate of requests (429)", _retry_after(error.response))
        if status >= 500:
            return _Failure(f"answered {status}", _retry_after(error.response))
        return _Failure(f"answered {status}: {error.response.text}", refused=status in (401, 403))
    if isinstance(error, AuthenticationError):
        return _Failure(f"does not accept the credentials or does not have the zone ({error})", refused=True)
    if isinstance(error, requests.ConnectionError | requests.Timeout | TimeoutError):
        return _Failure(connection_problem(error), wait_s=0)
    return _Failure(f"did not answer as expected ({type(error).__name__}: {error})")


def _retry_after(response: requests.Response) -> float:
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0


def _within(seconds: float, action: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Return the action's result or its error; TimeoutError after some seconds, while it goes on by itself."""
    outcome: queue.SimpleQueue[tuple[Result | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((action(), None))
        except Exception as error:  # lexicon's providers raise whatever they like
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.get(timeout=seconds)
    except queue.Empty:
        return None, TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:.0f} s")
