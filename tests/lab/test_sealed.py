"""Test a real seal. It takes seconds, because its work factor depends on this computer."""

from __future__ import annotations

import pytest

from minipc.core.errors import SecretError
from minipc.secrets.sealed import open_sealed, seal

PASSPHRASE = "orbit mango tundra velvet quilt"
PAYLOAD = bytes(range(256)) * 1000


def test_a_sealed_file_can_be_opened() -> None:
    sealed = seal(PAYLOAD, f"{PASSPHRASE}\n")
    assert PAYLOAD not in sealed
    assert open_sealed(sealed, PASSPHRASE) == PAYLOAD
    with pytest.raises(SecretError, match="the passphrase is wrong"):
        open_sealed(sealed, PASSPHRASE + "!")
