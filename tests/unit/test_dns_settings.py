"""The `dns_*` keys: one fixture for each rule, valid and invalid."""

from __future__ import annotations

from typing import Any

import pytest

from minipc import config
from minipc.core.errors import ConfigError
from minipc.secrets import catalogue

RECORD = {"name": "service.example.org", "type": "A"}
CLOUDFLARE = {"dns_provider": "cloudflare", "dns_zone": "example.org", "dns_records": [RECORD]}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dns_zone": "example.org", "dns_records": [RECORD]},
        CLOUDFLARE,
        CLOUDFLARE | {"dns_records": [RECORD, RECORD | {"type": "AAAA"}, {"name": "example.org", "type": "A"}]},
        CLOUDFLARE | {"dns_follow": True, "dns_follow_every_s": 60},
        CLOUDFLARE | {"dns_ipv4": "198.51.100.7", "dns_ipv6": "2001:db8::7"},
        CLOUDFLARE | {"dns_api_url": "http://127.0.0.1:8080/client/v4"},
        CLOUDFLARE | {"dns_api_url": "http://198.51.100.2:8080/client/v4"},
        CLOUDFLARE | {"dns_api_url": "https://api.cloudflare.com/client/v4"},
        CLOUDFLARE | {"dns_ttl_s": 60, "dns_cutover_ttl_s": 60},
        CLOUDFLARE | {"dns_provider": "gandi", "dns_options": {"api_protocol": "rest"}},
    ],
)
def test_valid(values: dict[str, Any]) -> None:
    config.load("lab", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dns_provider": "cloudfare"}, "did you mean 'cloudflare'?"),
        ({"dns_provider": "auto"}, "not a DNS provider that lexicon knows"),
        ({"dns_provider": "cloudflare"}, "needs dns_zone, and a public service or at least one of dns_records"),
        (CLOUDFLARE | {"dns_records": []}, "needs dns_zone, and a public service or at least one of dns_records"),
        (CLOUDFLARE | {"dns_zone": "example.net"}, "'service.example.org' is not in the zone"),
        (CLOUDFLARE | {"dns_zone": "ample.org"}, "is not in the zone 'ample.org'"),
        (CLOUDFLARE | {"dns_records": [RECORD, RECORD]}, "'service.example.org' A is in dns_records twice"),
        (CLOUDFLARE | {"dns_records": [RECORD | {"type": "CNAME"}]}, "allowed: 'A' or 'AAAA'"),
        (CLOUDFLARE | {"dns_records": [RECORD | {"content": "198.51.100.7"}]}, "unknown key"),
        (CLOUDFLARE | {"dns_ttl_s": 30}, "nearest: 60"),
        (CLOUDFLARE | {"dns_cutover_ttl_s": 600}, "dns_cutover_ttl_s is greater than dns_ttl_s"),
        (CLOUDFLARE | {"dns_ipv4": "2001:db8::7"}, "dns_ipv4 = '2001:db8::7' is not an IPv4 address"),
        (CLOUDFLARE | {"dns_ipv6": "198.51.100.7"}, "is not an IPv6 address"),
        (CLOUDFLARE | {"dns_api_url": "http://api.example.org"}, "did you mean 'https://api.example.org'?"),
        (CLOUDFLARE | {"dns_address_url": "http://ip.example.org"}, "did you mean 'https://ip.example.org'?"),
        (CLOUDFLARE | {"dns_api_url": "http://198.51.99.2"}, "did you mean 'https://198.51.99.2'?"),
        ({"dns_follow": True}, "dns_follow needs a dns_provider"),
    ],
)
def test_invalid(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load("lab", **values)
    assert message in str(caught.value)
    assert "nothing was changed" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "required"),
    [
        ({}, []),
        (CLOUDFLARE, ["dns.cloudflare_token"]),
        (CLOUDFLARE | {"dns_provider": "gandi"}, ["dns.credentials"]),
    ],
)
def test_the_credentials_are_required_with_a_provider_only(values: dict[str, Any], required: list[str]) -> None:
    entries = [entry for entry in catalogue.whole(config.load("lab", **values)) if entry.component == "dns"]
    assert [entry.name for entry in entries if not entry.optional] == required
    assert not any(entry.generate for entry in entries)
