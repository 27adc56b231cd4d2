"""Hash passwords with bcrypt, for ArgoCD and Alertmanager."""

from __future__ import annotations

import base64
import hashlib

import bcrypt

from minipc.secrets import Secret

_ROUNDS = 10  # as `argocd account bcrypt` uses
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPTS = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def hashed(password: Secret, whose: str = "argocd") -> str:
    """Return the bcrypt hash. It is always the same, so that a converge can compare it with the one in use.

    The salt is derived from the purpose, never from the password: a fast hash of it would be in every bcrypt hash.

    Args:
        whose: the purpose; equal passwords for two purposes get different hashes.
    """
    digest = hashlib.sha256(whose.encode()).digest()[:16]
    salt = base64.b64encode(digest).rstrip(b"=").translate(bytes.maketrans(_STANDARD, _BCRYPTS))
    return bcrypt.hashpw(password.reveal().encode(), b"$2b$%02d$" % _ROUNDS + salt).decode()
