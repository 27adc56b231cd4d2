"""Sealing with a passphrase."""

from __future__ import annotations

import base64
import os

import pyrage
import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from minipc.core.errors import SecretError
from minipc.secrets.sealed import check_passphrase, open_sealed, seal
from tests.unit.secrets_leaks import assert_silent

PASSPHRASE = "correct horse battery staple"
PAYLOAD = b"payload \x00\xff of the bundle"


def encode(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt or None, info).derive(key)


def sealed_with(log_n: int, work: int) -> bytes:
    """A file as the specification (age-encryption.org/v1) says; `log_n` is the work it claims, `work` what was done."""
    file_key, salt, nonce = os.urandom(16), os.urandom(16), os.urandom(16)
    wrap = Scrypt(salt=b"age-encryption.org/v1/scrypt" + salt, length=32, n=2**work, r=8, p=1)
    body = ChaCha20Poly1305(wrap.derive(PASSPHRASE.encode())).encrypt(bytes(12), file_key, None)
    header = b"age-encryption.org/v1\n-> scrypt %s %d\n%s\n---" % (encode(salt), log_n, encode(body))
    mac = hmac.HMAC(hkdf(file_key, b"", b"header"), hashes.SHA256())
    mac.update(header)
    payload = ChaCha20Poly1305(hkdf(file_key, nonce, b"payload")).encrypt(bytes(11) + b"\x01", PAYLOAD, None)
    return header + b" " + encode(mac.finalize()) + b"\n" + nonce + payload


@pytest.fixture
def sealed() -> bytes:
    """With little work, to be quick: a real seal takes a second and more (tests/lab/test_sealed.py)."""
    return sealed_with(log_n=2, work=2)


def fails(sealed: bytes, match: str, passphrase: str = PASSPHRASE) -> None:
    with pytest.raises(SecretError, match=match) as caught:
        open_sealed(sealed, passphrase)
    assert caught.value.next_step
    assert_silent(caught.value, passphrase, repr(PAYLOAD)[2:-1])


def test_a_file_made_by_the_specification_opens(sealed: bytes) -> None:
    assert open_sealed(sealed, f" {PASSPHRASE}\n") == PAYLOAD


def test_wrong_passphrase(sealed: bytes) -> None:
    fails(sealed, "the passphrase is wrong", "correct horse battery stable")


def test_more_work_than_this_computer_can_do() -> None:
    fails(sealed_with(log_n=40, work=2), "too slow or too busy")


@pytest.mark.parametrize("kept", [-1, -20, -40])
def test_cut_short(kept: int, sealed: bytes) -> None:
    fails(sealed[:kept], "damaged or incomplete")


@pytest.mark.parametrize("place", [-1, -30])
def test_flipped_bit(place: int, sealed: bytes) -> None:
    damaged = bytearray(sealed)
    damaged[place] ^= 1
    fails(bytes(damaged), "damaged or incomplete")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file",
        pyrage.encrypt(PAYLOAD, [pyrage.x25519.Identity.generate().to_public()]),
    ],
)
def test_not_sealed_with_a_passphrase(content: bytes) -> None:
    fails(content, rf"not sealed with a passphrase \({len(content)} bytes\)")


@pytest.mark.parametrize(
    "passphrase",
    [
        "",
        " ",
        "hunter2",
        f"{' ' * 20}hunter2",
        "x" * 200,
        "passwordpassword1234",
        "qwertyuiopasdfghjkl",
        "1234567890123456789",
        "abcdefghijklmnopqrstuvwxyz",
        "letmein letmein letmein letmein",
        "Berlin2024Sommer2024",
        "my name is john smith",
        "Correct Horse Battery Staple",
        "correcthorsebatterystaple",
    ],
)
def test_passphrases_that_can_be_guessed(passphrase: str) -> None:
    with pytest.raises(SecretError, match="the passphrase can be guessed") as caught:
        seal(PAYLOAD, passphrase)
    if passphrase.strip():
        assert_silent(caught.value, passphrase)


@pytest.mark.parametrize(
    "passphrase", ["orbit mango tundra velvet quilt", "k6vNtM_FoH1ujgPj_mWSaK5_7", "größe apfel zaun ofen licht"]
)
def test_passphrases_that_nobody_guesses(passphrase: str) -> None:
    check_passphrase(f" {passphrase}\n")
