"""Cloudflare's API, version 4 (https://developers.cloudflare.com/api/resources/dns/subresources/records/).

The token needs the permissions Zone:Read and DNS:Edit for the one zone, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import httpx

from minipc.dns.exchange import TIMEOUT_S, Say, Sleep, exchange, silent, tls_context
from minipc.dns.records import DnsError, Record
from minipc.errors import SecretError

TOKEN = "dns.cloudflare_token"  # noqa: S105 - the name of the secret

_ZONES_PER_PAGE = 50
_RECORDS_PER_PAGE = 100
# Codes as the API gave them when asked; Cloudflare documents none of them.
_TOKEN_REFUSED = {1000, 6003, 9106, 9109, 10000}
_NAME_TAKEN = {81053, 81054, 81055, 81056}
_ALREADY_THERE = {81057, 81058}
_SHOWN = 200  # characters of a server's message


class Cloudflare:
    """The records of one zone. Nothing is asked before the first use.

    Args:
        zone: its name, such as "example.org".
        token: see above; only ever in a header.
        api_url: where the API answers, without a slash at the end.
        sleep: waits between attempts.
        say: told before each wait.

    Raises:
        SecretError: the token has characters that no token has.
    """

    def __init__(self, zone: str, token: str, api_url: str, *, sleep: Sleep = time.sleep, say: Say = silent) -> None:
        if not (token.isascii() and token.isprintable() and " " not in token):
            raise SecretError(f"the secret {TOKEN} has characters that no token has", f"minipc secrets set {TOKEN}")
        self.zone = zone
        self._token = token
        self._sleep = sleep
        self._say = say
        self._client = httpx.Client(
            base_url=api_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            verify=tls_context(),
            follow_redirects=False,  # the token would travel along
        )
        self._id = ""

    def zones(self) -> list[str]:
        """Names of all zones that the token reaches: more than one is more than it needs."""
        return sorted(str(zone.get("name")) for zone in self._list("/zones", "list the zones", _ZONES_PER_PAGE))

    def records(self) -> Sequence[Record]:
        """All records of the zone."""
        what = f"list the records of {self.zone}"
        return [self._record(item, what) for item in self._list(self._path(), what, _RECORDS_PER_PAGE)]

    def create(self, record: Record) -> None:
        """Adds a record. One that is there already is no error: an attempt may have arrived whose answer did not."""
        body = {
            "type": record.type,
            "name": record.name,
            "content": record.content,
            "ttl": record.ttl_s,
            "comment": record.comment,
            "proxied": record.proxied,
        }
        self._ask("POST", self._path(), f"create {record}", accept=_ALREADY_THERE, json=body)

    def update(self, present: Record, wanted: Record) -> None:
        """Changes address, TTL and comment where they differ."""
        fields = {
            "content": (present.content, wanted.content),
            "ttl": (present.ttl_s, wanted.ttl_s),
            "comment": (present.comment, wanted.comment),
        }
        body = {name: new for name, (old, new) in fields.items() if old != new}
        self._ask("PATCH", f"{self._path()}/{present.id}", f"change {present}", json=body)

    def _path(self) -> str:
        if not self._id:
            what = f"find the zone {self.zone}"
            found = self._list("/zones", what, _ZONES_PER_PAGE, name=self.zone)
            ids = [zone.get("id") for zone in found if zone.get("name") == self.zone]
            if not ids:
                raise DnsError(
                    f"the token reaches no zone {self.zone} at Cloudflare",
                    "correct dns_zone, or give the token Zone:Read and DNS:Edit for this zone",
                )
            if not isinstance(ids[0], str) or not ids[0].isalnum():
                self._foreign(what)
            self._id = ids[0]
        return f"/zones/{self._id}/dns_records"

    def _list(self, path: str, what: str, per_page: int, **params: str) -> Iterator[dict[str, Any]]:
        page = pages = 1
        while page <= pages:
            body = self._ask("GET", path, what, params={**params, "page": page, "per_page": per_page})
            items, info = body.get("result"), body.get("result_info")
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                self._foreign(what)
            yield from items
            pages = info.get("total_pages", 1) if isinstance(info, dict) else 1
            page += 1

    def _ask(self, method: str, path: str, what: str, accept: set[int] | None = None, **request: Any) -> dict[str, Any]:
        answer = exchange(self._client, method, path, what=what, sleep=self._sleep, say=self._say, **request)
        try:
            body = answer.json()
        except ValueError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("success"), bool):
            self._foreign(what, answer.status_code)
        if not body["success"]:
            codes = {code for code, _ in _errors(body)}
            if not (codes and codes <= (accept or set())):
                self._refused(answer.status_code, body, what)
        return body

    def _refused(self, status: int, body: dict[str, Any], what: str) -> NoReturn:
        errors = _errors(body)
        codes = {code for code, _ in errors}
        said = "; ".join(f"{code}: {self._clean(text)}" for code, text in errors) or "no reason given"
        if status in (401, 403) or codes & _TOKEN_REFUSED:
            raise SecretError(
                f"Cloudflare refuses the token, could not {what} (HTTP {status}; {said})",
                f"make a token with Zone:Read and DNS:Edit for {self.zone}, then: minipc secrets set {TOKEN}",
            )
        if codes & _NAME_TAKEN:
            raise DnsError(
                f"could not {what}: another record has that name (HTTP {status}; {said})",
                f"look at it with `minipc dns show`, remove it in {self.zone}, and run again",
            )
        if status == 404:
            raise DnsError(
                f"could not {what}: it is no longer there (HTTP 404; {said})",
                "someone changed the zone meanwhile: `minipc dns show`, then run again",
            )
        raise DnsError(f"could not {what}: Cloudflare refuses it (HTTP {status}; {said})", "correct it and run again")

    def _record(self, item: dict[str, Any], what: str) -> Record:
        fields = {name: item.get(name) for name in ("id", "name", "type")}
        ttl = item.get("ttl")
        if not all(isinstance(value, str) and value for value in fields.values()) or not isinstance(ttl, int):
            self._foreign(what)
        return Record(
            name=str(fields["name"]).lower(),
            type=str(fields["type"]),
            content=str(item.get("content") or ""),
            ttl_s=ttl,
            comment=str(item.get("comment") or ""),
            proxied=bool(item.get("proxied")),
            id=str(fields["id"]),
        )

    def _foreign(self, what: str, status: int = 200) -> NoReturn:
        raise DnsError(
            f"could not {what}: {self._client.base_url.host} did not answer as Cloudflare's API does (HTTP {status})",
            "check dns_api_url, and whether a proxy is in between",
        )

    def _clean(self, text: str) -> str:
        """A server's words, on one line and short; should it ever repeat the token, without it."""
        visible = "".join(character if character.isprintable() else " " for character in text)
        return visible.replace(self._token, "…")[:_SHOWN]


def _errors(body: dict[str, Any]) -> list[tuple[int, str]]:
    found = body.get("errors")
    listed = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [(each["code"] if isinstance(each.get("code"), int) else 0, str(each.get("message", ""))) for each in listed]
