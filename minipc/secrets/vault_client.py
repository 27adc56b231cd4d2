"""Talks to Vault or OpenBao: log-in, one request at a time, and what went wrong in our own words.

What hvac and requests raise can quote an answer, so nothing here is raised while handling one of theirs: it would be
in the chain, and a traceback would show it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import hvac  # type: ignore[import-untyped]
import requests

from minipc.errors import SecretError
from minipc.secrets.files import read_private
from minipc.secrets.settings import VaultSettings

Action = Literal["read", "list", "write"]
_CAPABILITIES = {"read": "read", "list": "list", "write": "create and update"}
# What a request raises: hvac for a refusal, requests (its errors are OSErrors) for a failed exchange, and the others
# because hvac takes the shape of an answer for granted, which a proxy or another server may give.
_FAILURES = (hvac.exceptions.VaultError, OSError, ValueError, TypeError, KeyError, AttributeError)


class VaultClient:
    """One connection. Nothing is contacted before the first `ask`, which logs in.

    Args:
        settings: where and how.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._client: Any = None

    def ask(self, action: Action, path: str, request: Callable[[Any], Any]) -> dict[str, Any] | None:
        """The answer of the KV version 2 engine, or None when there is nothing at the path.

        Args:
            action: what the request does, for messages and for the capability that may be missing.
            path: mount and path, for messages.
            request: gets hvac's `secrets.kv.v2`.

        Raises:
            SecretError: unreachable, not trusted, sealed, token expired, denied, changed meanwhile, no such mount.
        """
        client = self._logged_in()
        failure: Exception
        try:
            answer = request(client.secrets.kv.v2)
        except _FAILURES as error:
            failure = error
        else:
            return self._body(answer)
        match failure:
            case hvac.exceptions.InvalidPath() if failure.json is not None:
                if not failure.errors:
                    return None
                raise self._misplaced(failure, path)
            case hvac.exceptions.Forbidden():
                raise self._forbidden(action, path)
            case hvac.exceptions.InvalidRequest() if _says(failure, "check-and-set"):
                raise SecretError(f"{path} was changed by someone else meanwhile; not written", "run it again")
        raise self._explained(failure, f"could not {action} {path}")

    @property
    def _url(self) -> str:
        return self._settings.url

    def _body(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, dict) and isinstance(answer.get("data"), dict):
            return answer
        if isinstance(answer, requests.Response) and answer.is_redirect:
            raise SecretError(
                f"{self._url} redirects elsewhere; the token is not sent there", "set `url` to the active node"
            )
        raise self._foreign()

    def _logged_in(self) -> Any:
        if self._client is None:
            client = self._connect()
            if self._settings.auth == "approle":
                self._log_in_with_approle(client)
            else:
                client.token = self._token()
            self._client = client
        return self._client

    def _connect(self) -> Any:
        ca_file = self._settings.ca_file and os.path.expanduser(self._settings.ca_file)
        if ca_file and not os.path.isfile(ca_file):
            raise SecretError(f"the CA bundle {ca_file} is missing", "correct `ca_file` in secrets_vault")
        return hvac.Client(
            url=self._url,
            token="",  # none yet; None would make hvac look for one itself
            verify=ca_file or True,
            timeout=self._settings.timeout_s,
            allow_redirects=False,  # a redirect would carry the token to another host
            namespace=self._settings.namespace,
            strict_http=True,  # GET ?list=true passes proxies that refuse the verb LIST
        )

    def _token(self) -> str:
        token = os.environ.get("VAULT_TOKEN", "").strip()
        if not token and self._settings.token_file:
            token = _content(self._settings.token_file, "the Vault token file")
        if not token:
            raise SecretError(
                f"no token for {self._url}", "set $VAULT_TOKEN, or token_file or AppRole in secrets_vault"
            )
        if not (token.isascii() and token.isprintable()):
            raise SecretError(f"the token for {self._url} has characters that no token has", "copy it again")
        return token

    def _log_in_with_approle(self, client: Any) -> None:
        role_id = _content(self._settings.role_id_file, "the AppRole role id file")
        secret_id = _content(self._settings.secret_id_file, "the AppRole secret id file")
        failure: Exception
        try:
            client.auth.approle.login(role_id, secret_id, mount_point=self._settings.approle_mount)
        except _FAILURES as error:
            failure = error
        else:
            return
        refused = (hvac.exceptions.InvalidRequest, hvac.exceptions.Unauthorized, hvac.exceptions.Forbidden)
        if isinstance(failure, refused):
            raise SecretError(
                f"{self._url} refused the AppRole login at auth/{self._settings.approle_mount}: "
                "role id or secret id is wrong, expired or used up, or the method is mounted elsewhere",
                f"issue a new secret id and put it in {self._settings.secret_id_file} (0600)",
            )
        raise self._explained(failure, f"could not log in at auth/{self._settings.approle_mount}")

    def _misplaced(self, failure: Exception, path: str) -> SecretError:
        if _says(failure, "namespace"):
            return SecretError(
                f"{self._url} has no namespace {self._settings.namespace}", "correct `namespace` in secrets_vault"
            )
        return SecretError(f"{self._url} has no engine mounted for {path}", "correct `mount` in secrets_vault")

    def _forbidden(self, action: Action, path: str) -> SecretError:
        """Denied or expired: both are 403, and servers differ in whether they say which."""
        try:
            self._client.auth.token.lookup_self()
        except _FAILURES as error:
            accepted = _is_denied_by_policy(error)
        else:
            accepted = True
        if accepted:
            return SecretError(
                f"{self._url} denies to {action} {path}", f"give the token's policy {_CAPABILITIES[action]} there"
            )
        return SecretError(
            f"{self._url} does not accept the token: expired, revoked or unknown; could not {action} {path}",
            f"run again; if the log-in is refused, put a new secret id in {self._settings.secret_id_file}"
            if self._settings.auth == "approle"
            else "log in again and set $VAULT_TOKEN or token_file",
        )

    def _explained(self, failure: Exception, what: str) -> SecretError:
        url, again = self._url, "correct it and run again"
        match failure:
            case requests.exceptions.SSLError():
                trusted_by = self._settings.ca_file or "the system's CA bundle"
                return SecretError(
                    f"the certificate of {url} is not trusted by {trusted_by}{_reason(failure)}; {what}",
                    "set `ca_file` in secrets_vault to the CA that signed it",
                )
            case requests.exceptions.Timeout():
                return SecretError(f"{url} did not answer within {self._settings.timeout_s:g} s; {what}", again)
            case requests.exceptions.ConnectionError():
                return SecretError(
                    f"{url} can't be reached{_reason(failure)}; {what}", "check `url` in secrets_vault and the network"
                )
            case OSError() if not isinstance(failure, requests.RequestException):
                return SecretError(f"the CA bundle {self._settings.ca_file} can't be read; {what}", again)
            case hvac.exceptions.VaultDown() if _says(failure, "sealed"):
                return SecretError(f"{url} is sealed; {what}", "unseal it and run again")
            case hvac.exceptions.VaultDown():
                return SecretError(f"{url} is not ready (503); {what}", "wait for it or unseal it, then run again")
            case hvac.exceptions.VaultNotInitialized():
                return SecretError(f"{url} is not initialised; {what}", "initialise and unseal it, then run again")
            case hvac.exceptions.RateLimitExceeded():
                return SecretError(f"{url} limits the rate of requests (429); {what}", "wait, then run again")
            case hvac.exceptions.VaultError() if not isinstance(failure, hvac.exceptions.InvalidPath):
                return SecretError(f"{url} answered {type(failure).__name__}; {what}", "look into the server's log")
        return self._foreign()

    def _foreign(self) -> SecretError:
        return SecretError(
            f"{self._url} did not answer as a KV version 2 engine does", "check `url` and `mount` in secrets_vault"
        )


def _says(failure: Exception, text: str) -> bool:
    return text in str(failure.args[0] if failure.args else "").lower()


def _is_denied_by_policy(failure: Exception) -> bool:
    """A valid token whose policies don't even let it look itself up. An unknown token gets the bare words
    "permission denied" (OpenBao 2.5), or is called invalid in a second error (Vault)."""
    return _says(failure, "1 error occurred")


def _reason(failure: BaseException) -> str:
    """The system's own words for a failed connection, found at the bottom of the chain."""
    link: BaseException | None = failure
    while link is not None:
        if isinstance(link, ssl.SSLCertVerificationError):
            return f" ({link.verify_message})"
        if isinstance(link, OSError) and link.strerror and not isinstance(link, requests.RequestException):
            return f" ({link.strerror})"
        link = link.__cause__ or link.__context__
    return ""


def _content(path: str | None, what: str) -> str:
    if path is None:
        raise SecretError(f"{what} is not configured", "name it in secrets_vault")
    file = Path(path).expanduser()
    text = read_private(file, what).decode(errors="replace").strip()
    if not text:
        raise SecretError(f"{what} {file} is empty", "write the value into it, mode 0600")
    return text
