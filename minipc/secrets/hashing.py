"""A password as programs keep it that compare: ArgoCD that of its administrator, Alertmanager that of its operator."""

from __future__ import annotations

import base64
import hashlib

import bcrypt

from minipc.secrets import Secret

_ROUNDS = 10  # what `argocd account bcrypt` takes
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BCRYPTS = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def hashed(password: Secret, whose: str = "argocd") -> str:
    """The bcrypt hash, the same each time, so that a converge can tell whether it is the one in use.

    The salt follows from the password. What a random one protects, equal passwords of many people, isn't here.

    Args:
        whose: equal passwords of two programs have different hashes.
    """
    digest = hashlib.sha256(f"{whose} {password.reveal()}".encode()).digest()[:16]
    salt = base64.b64encode(digest).rstrip(b"=").translate(bytes.maketrans(_STANDARD, _BCRYPTS))
    return bcrypt.hashpw(password.reveal().encode(), b"$2b$%02d$" % _ROUNDS + salt).decode()
