"""A real seal: its work is measured against this computer, so it takes seconds and is not among the unit tests."""

from __future__ import annotations

import pytest

from minipc.errors import SecretError
from minipc.secrets.sealed import open_sealed, seal

PASSPHRASE = "correct horse battery staple"
PAYLOAD = bytes(range(256)) * 1000


def test_what_is_sealed_comes_back() -> None:
    sealed = seal(PAYLOAD, f"{PASSPHRASE}\n")
    assert PAYLOAD not in sealed
    assert open_sealed(sealed, PASSPHRASE) == PAYLOAD
    with pytest.raises(SecretError, match="the passphrase is wrong"):
        open_sealed(sealed, PASSPHRASE + "!")
