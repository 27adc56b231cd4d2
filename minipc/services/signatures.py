"""Verify that an image was signed with the key that a service file names, in the format of cosign ("simple signing").

The payload is described in containers-signature(5). Everything that comes from the registry is data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from minipc.config import Settings
from minipc.config.service import Service
from minipc.core.errors import ConfigError, RefusedError
from minipc.services import registry
from minipc.services.registry import MissingSignatureError, Signature

CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
"""The fields of a pod's spec with containers."""
TYPE = "cosign container image signature"
_PINNED = re.compile(r"([a-z0-9][a-z0-9._:/-]*)@(sha256:[0-9a-f]{64})")
_NEXT = "sign it with the key of the service file (`cosign sign --key`), or release another image"

Verify = Callable[[Service, str], None]
"""Raises unless an image, NAME@sha256:…, was signed for this service."""


def verifier(settings: Settings) -> Verify:
    """Return a function that verifies an image and remembers those that passed.

    It raises RefusedError if the image is not signed, ConfigError if the key cannot be used, MinipcError or
    CouldNotVerifyError if the registry does not have it or does not answer.
    """
    passed: set[tuple[str, str]] = set()

    def verify(service: Service, reference: str) -> None:
        if service.image_signer is None:
            return
        key = public_key(service)
        known = (fingerprint(key), reference)
        if known in passed:
            return
        image, digest = split(reference)
        try:
            found = registry.signatures_of(settings, image, digest)
        except MissingSignatureError as error:
            raise RefusedError(error.what, _NEXT) from None
        demand(key, found, image, digest)
        passed.add(known)

    return verify


def public_key(service: Service) -> ec.EllipticCurvePublicKey:
    """Return the key of the service file. Raises ConfigError if it cannot be used."""
    path: Path = service.beside(service.image_signer or "")
    allowed = "allowed: the file cosign.pub of `cosign generate-key-pair`, PEM with an ECDSA P-256 key"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"image_signer: {path} cannot be read: {error.strerror}", allowed) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"image_signer: {path} is not a public key in PEM format", allowed) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"image_signer: {path} has a key of another kind", allowed)
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key, hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def split(reference: str) -> tuple[str, str]:
    """Return name and digest of NAME@sha256:….

    Raises:
        RefusedError: it has no digest, or a tag as well.
    """
    found = _PINNED.fullmatch(reference)
    if found is None or ":" in found[1].rpartition("/")[2]:
        raise RefusedError(
            f"the image {reference!r} is not named by its digest alone",
            "the release must name it as NAME@sha256:…: `minipc release set NAME --digest sha256:…`",
        )
    return found[1], found[2]


def demand(key: ec.EllipticCurvePublicKey, found: Sequence[Signature], image: str, digest: str) -> None:
    """Raise RefusedError unless one of the signatures is of that key, and for exactly this image and digest."""
    reasons = []
    for each in found:
        reason = _problem(key, each, image, digest)
        if not reason:
            return
        reasons.append(reason)
    why = "; ".join(dict.fromkeys(reasons)) or "nothing that is stored as a signature is one"
    raise RefusedError(f"{image}@{digest} has no valid signature: {why}", _NEXT)


def images_of(pods: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Return the image of each container of any kind and of each volume in these pod specs."""
    for spec in pods:
        for kind in CONTAINERS:
            yield from (str(container.get("image")) for container in spec.get(kind) or [])
        volumes = [each["image"] for each in spec.get("volumes") or [] if each.get("image") is not None]
        yield from (str(image.get("reference")) for image in volumes)


def _problem(key: ec.EllipticCurvePublicKey, found: Signature, image: str, digest: str) -> str:
    """Return why a signature does not count; empty if it does."""
    try:
        signature = base64.b64decode(found.signature, validate=True)
        key.verify(signature, found.payload, ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return "it is of another key"
    # From here on the signer wrote it.
    try:
        critical = json.loads(found.payload)["critical"]
        kind, identity = critical["type"], critical["identity"]["docker-reference"]
        signed = critical["image"]["docker-manifest-digest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "its payload is not what cosign signs"
    if kind != TYPE:
        return "it was not made for an image"
    if signed != digest:
        return "it is of another image"
    if not isinstance(identity, str) or _full(identity) != _full(image):
        return "it was made for another repository"
    return ""


def _full(image: str) -> str:
    """Return the name with its registry; cosign calls Docker Hub index.docker.io, and a name without one is there."""
    first, slash, rest = image.partition("/")
    if not slash or first in ("docker.io", "index.docker.io"):
        path = rest or image
        return f"docker.io/{path if '/' in path else f'library/{path}'}"
    return image if "." in first or ":" in first or first == "localhost" else f"docker.io/{image}"
