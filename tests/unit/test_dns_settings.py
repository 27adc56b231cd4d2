"""The `dns_*` keys: one fixture for each rule, valid and invalid."""

from __future__ import annotations

from typing import Any

import pytest

from minipc import config
from minipc.dns import cloudflare
from minipc.errors import ConfigError
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
        CLOUDFLARE | {"dns_ttl_s": 60, "dns_cutover_ttl_s": 60},
    ],
)
def test_valid(values: dict[str, Any]) -> None:
    config.load("lab", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dns_provider": "cloudfare"}, "did you mean 'cloudflare'?"),
        ({"dns_provider": "cloudflare"}, "needs dns_zone and at least one of dns_records"),
        (CLOUDFLARE | {"dns_records": []}, "needs dns_zone and at least one of dns_records"),
        (CLOUDFLARE | {"dns_zone": "example.net"}, "'service.example.org' in dns_records is not in the zone"),
        (CLOUDFLARE | {"dns_zone": "ample.org"}, "is not in the zone 'ample.org'"),
        (CLOUDFLARE | {"dns_records": [RECORD, RECORD]}, "'service.example.org' A is twice"),
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


def test_the_token_is_required_with_a_provider_only() -> None:
    assert catalogue.DNS_TOKEN == cloudflare.TOKEN
    for values, optional in (({}, True), (CLOUDFLARE, False)):
        entries = {entry.name: entry for entry in catalogue.whole(config.load("lab", **values))}
        assert entries["dns.cloudflare_token"].optional is optional
        assert entries["dns.cloudflare_token"].generate is None
