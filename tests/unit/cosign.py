"""Signatures of images as cosign writes them, made with a key of the test."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minipc.services.registry import Signature

TYPE = "cosign container image signature"


class Signer:
    """Someone with a key."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())

    def write(self, path: Path) -> Path:
        """Write the public key as `cosign generate-key-pair` does."""
        path.write_bytes(self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return path

    def sign(self, image: str, digest: str, kind: str = TYPE) -> Signature:
        """Return what `cosign sign --key` stores for an image."""
        identity, signed = {"docker-reference": image}, {"docker-manifest-digest": digest}
        return self.sign_payload({"critical": {"identity": identity, "image": signed, "type": kind}, "optional": None})

    def sign_payload(self, payload: object) -> Signature:
        """Return a signature of any content."""
        content = json.dumps(payload, separators=(",", ":")).encode()
        return Signature(content, base64.b64encode(self.key.sign(content, ec.ECDSA(SHA256()))).decode())
