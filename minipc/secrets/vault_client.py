"""Send requests to Vault or OpenBao: log in, and explain errors without quoting the server.

Exceptions of hvac and requests can quote a response. Nothing is raised here while one of them is handled: it would be
in the exception chain, and a traceback would show it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import hvac  # type: ignore[import-untyped]
import requests

from minipc.config.secrets_settings import VaultSettings
from minipc.core.errors import SecretError
from minipc.core.files import read_private

Action = Literal["read", "list", "write"]
_CAPABILITIES = {"read": "read", "list": "list", "write": "create and update"}
# Raised by a request: VaultError if refused, OSError by requests if the exchange failed, and the others because hvac
# does not check the shape of a response, which may come from a proxy or another server.
_FAILURES = (hvac.exceptions.VaultError, OSError, ValueError, TypeError, KeyError, AttributeError)


class VaultClient:
    """One connection. The first `ask` logs in.

    Args:
        settings: where and how.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._url = settings.url
        self._client: Any = None

    def ask(self, action: Action, path: str, request: Callable[[Any], Any]) -> dict[str, Any] | None:
        """Return the response of the KV version 2 engine, or None if nothing is at the path.

        Args:
            action: what the request does, for error messages and for the capability that may be missing.
            path: mount and path, for error messages.
            request: function of hvac's `secrets.kv.v2`.

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
            case hvac.exceptions.InvalidPath() if failure.json is not None and not failure.errors:
                return None
            case hvac.exceptions.InvalidPath() if failure.json is not None and _says(failure, "namespace"):
                namespace = self._settings.namespace
                raise SecretError(f"{self._url} has no namespace {namespace}", "correct `namespace` in secrets_vault")
            case hvac.exceptions.InvalidPath() if failure.json is not None:
                raise SecretError(f"{self._url} has no engine mounted for {path}", "correct `mount` in secrets_vault")
            case hvac.exceptions.Forbidden():
                raise self._forbidden(action, path)
            case hvac.exceptions.InvalidRequest() if _says(failure, "check-and-set"):
                raise SecretError(f"{path} was changed by another client meanwhile; not written", "run it again")
        raise self._explained(failure, f"could not {action} {path}")

    def _body(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, dict) and isinstance(answer.get("data"), dict):
            return answer
        if isinstance(answer, requests.Response) and answer.is_redirect:
            raise SecretError(
                f"{self._url} redirects to another address; the token is not sent there",
                "set `url` to the active node",
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
            token="",  # none yet; with None hvac would look for one itself
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
            raise SecretError(
                f"the token for {self._url} contains characters that are not allowed in a token", "copy it again"
            )
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
                "role id or secret id is wrong, expired or used up, or the mount is wrong",
                f"issue a new secret id and put it in {self._settings.secret_id_file} (0600)",
            )
        raise self._explained(failure, f"could not log in at auth/{self._settings.approle_mount}")

    def _forbidden(self, action: Action, path: str) -> SecretError:
        """Tell a denied request from an expired token: both are 403, and not every server says which."""
        try:
            self._client.auth.token.lookup_self()
        except _FAILURES as error:
            # A valid token whose policies do not allow it to look itself up. An unknown token gets only the words
            # "permission denied" (OpenBao 2.5), or is called invalid in a second error (Vault).
            accepted = _says(error, "1 error occurred")
        else:
            accepted = True
        if accepted:
            return SecretError(
                f"{self._url} does not allow this token to {action} {path}",
                f"give the token's policy {_CAPABILITIES[action]} there",
            )
        return SecretError(
            f"{self._url} does not accept the token: expired, revoked or unknown; could not {action} {path}",
            f"run again; if the login is refused, put a new secret id in {self._settings.secret_id_file}"
            if self._settings.auth == "approle"
            else "log in again and set $VAULT_TOKEN or token_file",
        )

    def _explained(self, failure: Exception, what: str) -> SecretError:
        again = "run it again"
        match failure:
            case requests.exceptions.SSLError():
                trusted_by = self._settings.ca_file or "the system's CA bundle"
                problem = f"has a certificate that is not trusted by {trusted_by}{_reason(failure)}"
                next_step = "set `ca_file` in secrets_vault to the CA that signed the server's certificate"
            case requests.exceptions.Timeout():
                problem, next_step = f"did not answer within {self._settings.timeout_s:g} s", again
            case requests.exceptions.ConnectionError():
                problem = f"cannot be reached{_reason(failure)}"
                next_step = "check `url` in secrets_vault and the network"
            case OSError() if not isinstance(failure, requests.RequestException):
                problem, next_step = f"cannot be asked: the CA bundle {self._settings.ca_file} cannot be read", again
            case hvac.exceptions.VaultDown() if _says(failure, "sealed"):
                problem, next_step = "is sealed", "unseal it and run again"
            case hvac.exceptions.VaultDown():
                problem, next_step = "is not ready (503)", "wait for it or unseal it, then run again"
            case hvac.exceptions.VaultNotInitialized():
                problem, next_step = "is not initialised", "initialise and unseal it, then run again"
            case hvac.exceptions.RateLimitExceeded():
                problem, next_step = "limits the rate of requests (429)", "wait, then run again"
            case hvac.exceptions.VaultError() if not isinstance(failure, hvac.exceptions.InvalidPath):
                problem, next_step = f"answered {type(failure).__name__}", "look at the server's log"
            case _:
                return self._foreign()
        return SecretError(f"{self._url} {problem}; {what}", next_step)

    def _foreign(self) -> SecretError:
        return SecretError(
            f"{self._url} did not answer like a KV version 2 engine", "check `url` and `mount` in secrets_vault"
        )


def _says(failure: Exception, text: str) -> bool:
    return text in str(failure.args[0] if failure.args else "").lower()


def _reason(failure: BaseException) -> str:
    """Return the system's own words for a failed connection, from the end of the exception chain."""
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
