"""Ask an S3 bucket what it allows and what is in it, with signed requests (AWS Signature Version 4): bucket

pgBackRest and restic read and write the backups. This asks what they cannot: whether the key may do what they need,
whether the bucket keeps what is deleted, and whether somebody else's backups are in it. It runs on the mini PC and on
the controller. Source of the signature: "Authenticating Requests: Using the Authorization Header (AWS Signature
Version 4)" in the Amazon S3 API reference.
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import http.client
import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from minipc_machine import schema
from minipc_machine.program import EXIT_PASS, FailedError, say

SETTINGS = Path("/etc/minipc/backups/bucket.json")
CREDENTIALS = Path("/etc/minipc/backups/s3.credentials")
DATABASE, FILES = "pgbackrest/", "restic/"
"""Folders in the bucket: of pgBackRest and of restic. Nothing else belongs there."""
PROBE = "minipc-probe"
LIMIT_S = 20
MAX_ANSWER = 4 << 20


@dataclass(frozen=True)
class Bucket:
    """Where the bucket is.

    Attributes:
        endpoint: host, or host:port.
        ca: PEM of the certificate that the server's must chain to; empty: the system's.
    """

    endpoint: str
    name: str
    region: str
    ca: str = ""


@dataclass(frozen=True)
class Key:
    """The key pair for the bucket. The secret is never shown."""

    access: str
    secret: str

    def __repr__(self) -> str:
        return f"Key({self.access!r}, …)"


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    status: int
    body: bytes

    def text(self, tag: str) -> str:
        """Return the text of the first element with that name; empty if there is none, or if the body is not XML."""
        try:
            root = ElementTree.fromstring(self.body)  # noqa: S314 - bounded, and Python expands no external entities
        except ElementTree.ParseError:
            return ""
        return next((each.text or "" for each in root.iter() if each.tag.rpartition("}")[2] == tag), "")

    @property
    def code(self) -> str:
        """Return the server's own name of the error, such as AccessDenied, as far as it is one word."""
        found = self.text("Code")
        return found if re.fullmatch(r"[A-Za-z]{1,64}", found) else f"HTTP {self.status}"


@dataclass(frozen=True)
class Protection:
    """What the bucket does against deletion.

    Attributes:
        versioning: it keeps what is deleted or replaced.
        object_lock: it keeps it for a time that nobody can shorten.
    """

    versioning: bool
    object_lock: bool

    def __str__(self) -> str:
        if not self.versioning:
            return "the bucket has NO VERSIONING: who has its key can delete all backups for good"
        lock = "with object lock" if self.object_lock else "without object lock"
        return f"the bucket keeps what is deleted (versioning, {lock})"


def main(arguments: list[str]) -> int:
    """Check the bucket with the machine's own key, and say what it does against deletion. Raises FailedError."""
    parser = configparser.RawConfigParser()
    if arguments or not SETTINGS.exists() or not parser.read(CREDENTIALS):
        raise FailedError("usage: bucket, on a machine whose backups are in a bucket")
    key = Key(parser["default"]["aws_access_key_id"], parser["default"]["aws_secret_access_key"])
    say(str(examine(schema.load(Bucket, SETTINGS), key)))
    return EXIT_PASS


def request(bucket: Bucket, key: Key, method: str, path: str = "", query: str = "", body: bytes = b"") -> Answer:
    """Send one signed request.

    Args:
        path: name of the object; empty: the bucket itself.
        query: sorted and encoded, `name=value` joined by `&`.

    Raises:
        FailedError: the server cannot be reached, or its certificate is not trusted.
    """
    target = quote(f"/{bucket.name}" + (f"/{path}" if path else ""))
    at = time.gmtime()
    digest = hashlib.sha256(body).hexdigest()
    headers = {
        "host": bucket.endpoint,
        "x-amz-content-sha256": digest,
        "x-amz-date": time.strftime("%Y%m%dT%H%M%SZ", at),
    }
    headers["authorization"] = _signature(bucket, key, headers, "\n".join((method, target, query)))
    context = ssl.create_default_context(cadata=bucket.ca or None)
    host, _, port = bucket.endpoint.partition(":")
    connection = http.client.HTTPSConnection(host, int(port or 443), timeout=LIMIT_S, context=context)
    try:
        connection.request(method, f"{target}?{query}" if query else target, body, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(MAX_ANSWER))
    except (OSError, http.client.HTTPException) as error:
        why = "no answer in time" if isinstance(error, socket.timeout) else str(error)
        raise FailedError(f"{bucket.endpoint} cannot be reached: {why}") from None
    finally:
        connection.close()


def _signature(bucket: Bucket, key: Key, headers: dict[str, str], asked: str) -> str:
    """Return the header `Authorization` of a request; `asked` is its method, path and query, a line each."""
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    whole = f"{asked}\n{lines}\n{names}\n{headers['x-amz-content-sha256']}"
    day = headers["x-amz-date"][:8]
    scope = f"{day}/{bucket.region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashlib.sha256(whole.encode()).hexdigest()}"
    signing = f"AWS4{key.secret}".encode()
    for part in scope.split("/"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    made = hmac.new(signing, text.encode(), hashlib.sha256).hexdigest()
    return f"AWS4-HMAC-SHA256 Credential={key.access}/{scope},SignedHeaders={names},Signature={made}"


def contents(bucket: Bucket, key: Key) -> list[str]:
    """Return the names of the first folders and objects in the bucket.

    Raises:
        FailedError: as `request`; or the bucket cannot be listed, and why.
    """
    answer = request(bucket, key, "GET", query="delimiter=%2F&list-type=2&max-keys=100")
    if answer.status != 200:
        raise FailedError(_refusal(bucket, "listed", answer))
    root = ElementTree.fromstring(answer.body)  # noqa: S314 - bounded, and Python expands no external entities
    found = [each.text or "" for each in root.iter() if each.tag.rpartition("}")[2] in ("Key", "Prefix")]
    return [name for name in found if name and name != PROBE]


def examine(bucket: Bucket, key: Key) -> Protection:
    """Check that backups can be kept in the bucket: list, write, read, delete. Leave nothing in it.

    Raises:
        FailedError: what is wrong with it.
    """
    other = next((name for name in contents(bucket, key) if name not in (DATABASE, FILES)), "")
    if other:
        raise FailedError(
            f"the bucket {bucket.name} is used by something else: it contains {other[:80]!r}. Backups need a "
            "bucket for themselves: create another one, and set it in offsite_s3"
        )
    for method, body, done, good in (
        ("PUT", b"minipc", "written to", (200,)),
        ("GET", b"", "read", (200,)),
        ("DELETE", b"", "cleaned up", (200, 204)),
    ):
        answer = request(bucket, key, method, PROBE, body=body)
        if answer.status not in good:
            raise FailedError(_refusal(bucket, done, answer))
    versioning = request(bucket, key, "GET", query="versioning=").text("Status") == "Enabled"
    lock = request(bucket, key, "GET", query="object-lock=").text("ObjectLockEnabled") == "Enabled"
    return Protection(versioning, lock)


def _refusal(bucket: Bucket, what: str, answer: Answer) -> str:
    region = answer.text("Region")
    start = f"the bucket {bucket.name} at {bucket.endpoint} cannot be {what}: {answer.code}"
    if answer.code in ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"):
        named = f"; it is in {region}" if re.fullmatch(r"[a-z0-9-]{1,40}", region) else ""
        return f"{start}: its region is not {bucket.region}{named}. Correct the region in offsite_s3"
    if answer.code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return f"{start}: the key is wrong: set both halves again with `minipc secrets set`"
    if answer.code == "NoSuchBucket":
        return f"{start}: create it, and switch its versioning on"
    return f"{start}: give the key the right to list the bucket, and to read, write and delete objects in it"
