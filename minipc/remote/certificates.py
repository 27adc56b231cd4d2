"""The certificate that a server shows, as a client sees it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from cryptography import x509

from minipc.core.addresses import bracketed

LIMIT_S = 15


def served(address: str, domain: str, prefix: Sequence[str] = (), port: int = 443) -> x509.Certificate | None:
    """Return the certificate for a name at an address, trusted or not; None if none is presented.

    Args:
        prefix: what a command is started with to run where the client is, such as in a network namespace.
    """
    argv = [*prefix, "openssl", "s_client", "-connect", f"{bracketed(address)}:{port}", "-servername", domain]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S)
        return x509.load_pem_x509_certificate(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return None
