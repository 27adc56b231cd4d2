"""What skopeo prints about a registry, and what it means to the user."""

from __future__ import annotations

import pytest

from minipc.services import registry

DIGEST = "sha256:403429401" + "a" * 55
ANSWERS = [
    ("127.0.0.1:35403/you/shop:v9", "reading manifest v9 in {}: manifest unknown", "does not have it"),
    (f"ghcr.example/you/shop@{DIGEST}", "reading manifest {}: manifest unknown", "does not have it"),
    ("ghcr.example/denied/shop:v1", "{}: received unexpected HTTP status: 429 Too Many Requests", "limits the rate"),
    ("ghcr.example/you/shop:v1", "{}: unauthorized: authentication required", "refuses the login"),
    ("ghcr.example/you/shop:v1", "Requesting bearer token: invalid status code 403 (Forbidden)", "refuses the login"),
    ("127.0.0.1:40401/you/shop:v1", "pinging 127.0.0.1:40401: connection refused", "does not answer"),
]


@pytest.mark.parametrize(("reference", "said", "meaning"), ANSWERS)
def test_numbers_in_names_digests_and_ports_are_no_status(reference: str, said: str, meaning: str) -> None:
    assert meaning in str(registry._error(reference, said.format(reference)))
