"""Secrets behind one interface: in an age file (default) or in Vault/OpenBao KV version 2.

A run resolves all its secrets before its first change. A value becomes text only where `.reveal()` is called.
"""

from minipc.secrets.backends import load, open_store
from minipc.secrets.secret import Secret, Secrets
from minipc.secrets.store import SecretStore

__all__ = ["Secret", "SecretStore", "Secrets", "load", "open_store"]
