"""What follows from a key: the same each time, and accepted by those who have to accept it."""

from __future__ import annotations

import subprocess

import pytest
from cryptography import x509

from minipc.core.errors import SecretError
from minipc.secrets import ed25519
from minipc.secrets.generate import ssh_private_key
from minipc.secrets.secret import Secret


@pytest.fixture(scope="module")
def key():
    return Secret("offsite.tls_key", ssh_private_key())


def test_openssh_reads_the_private_key_and_agrees_on_the_public_one(key, tmp_path):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(key.reveal())
    done = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ed25519.public_key(key).split()


@pytest.mark.parametrize("address", ["203.0.113.20", "2001:db8::1", "backup.example.org"])
def test_the_certificate_is_the_same_each_time_and_names_the_address(key, address):
    pem = ed25519.certificate(key, address)
    assert ed25519.certificate(key, address) == pem
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.DNSName) + names.get_values_for_type(x509.IPAddress)
    assert [str(name) for name in found] == [address]
    certificate.verify_directly_issued_by(certificate)


def test_another_key_or_address_is_another_certificate(key):
    other = Secret("offsite.tls_key", ssh_private_key())
    assert (
        len(
            {
                ed25519.certificate(key, "a.example"),
                ed25519.certificate(other, "a.example"),
                ed25519.certificate(key, "b.example"),
            }
        )
        == 3
    )


def test_the_password_entry_is_apaches():
    assert ed25519.htpasswd(Secret("offsite.rest_password", "password")) == "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="


def test_what_is_no_key_is_named_but_not_shown():
    with pytest.raises(SecretError, match=r"offsite\.tls_key is not an ed25519") as error:
        ed25519.public_key(Secret("offsite.tls_key", "hunter2"))
    assert "hunter2" not in str(error.value)
