"""Secrets: one interface, kept in an age file (default) or in Vault/OpenBao KV v2.

All secrets a run needs are resolved before its first change; a value is only text where `.reveal()` is called.
"""

from minipc.secrets.backends import load, open_store
from minipc.secrets.secret import Secret, Secrets
from minipc.secrets.store import SecretStore

__all__ = ["Secret", "SecretStore", "Secrets", "load", "open_store"]
