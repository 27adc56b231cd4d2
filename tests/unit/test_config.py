"""One valid and one invalid value for each rule; errors name the key, what was given, what is allowed, the nearest."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from minipc.config import load, parse
from minipc.config.load import GONE, MOVED, group_data
from minipc.config.schema import PostgresSettings
from minipc.core.errors import ConfigError
from minipc.core.ports import MONITORING

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJaZ0b2Yt7mJcRrHq3sQx3u2Tn0f7cVg5rJ1WwqkXo2b you@laptop"
WORKLOAD = {"name": "parking", "owner": "parking_owner", "runtime": "parking", "reader": "parking_reader"}
ROLES = [{"name": name, "memberships": []} for name in ("parking", "parking_owner")]
POSTGRES = {
    "port": 5432,
    "client_networks": [],
    "shared_buffers_percent": 15,
    "max_connections": 100,
    "slow_statement_ms": 500,
    "from_backup": "refuse",
    "databases": [WORKLOAD],
    "roles": [*ROLES, {"name": "monitoring", "memberships": ["pg_monitor"]}],
}
SLACK = {"name": "slack", "kind": "slack"}
GHCR = {"name": "ghcr", "host": "ghcr.io", "username": "you"}
VALID = {"host_operator_keys": [KEY], "vpn_peers": []}
S3 = {"endpoint": "s3.example.org", "bucket": "minipc-backups", "region": "eu-1"}
SFTP = {"host": "box.example.org", "port": 23, "user": "u1", "path": "/home/minipc", "host_keys": [KEY]}
PEER = {
    "name": "laptop",
    "public_key": "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
    "allowed_ips": ["10.99.0.2/32", "fd99:6d69:6e69::2/128"],
}
OTHER = {
    "name": "phone",
    "public_key": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
    "allowed_ips": ["10.99.0.3/32"],
}


@pytest.fixture(scope="module")
def values():
    return group_data("production") | VALID


@pytest.mark.parametrize(
    ("key", "valid", "invalid", "told"),
    [
        ("environment", "lab", "production ", "did you mean 'production'?"),
        ("host_name", "box-1", "My Box", "string should match pattern"),
        ("host_operator_user", "ada", "Ada", "did you mean 'ada'?"),
        ("host_operator_keys", [KEY], ["ssh-ed25519 AAAA-replace-me you"], "not an SSH public key"),
        ("host_journal_days", 30, 7, "nearest: 30"),
        ("host_journal_max_mb", 512, 0, "nearest: 1"),
        ("host_service_address", "10.88.0.1", "10.88.0.1/32", "did you mean '10.88.0.1'?"),
        (
            "host_apt_mirror",
            "http://mirror.lan/debian",
            "mirror.lan/debian",
            "did you mean 'https://mirror.lan/debian'?",
        ),
        ("host_reboot_at", "04:30", "4:30", "string should match pattern"),
        ("host_confirm_within_s", 20, 5, "nearest: 20"),
        ("host_sysctls", {"vm.x": "1"}, {"vm.x": 1}, "did you mean '1'?"),
        ("firewall_public_interfaces", ["eth0"], "eth0", "did you mean ['eth0']?"),
        ("firewall_operator_networks", ["10.1.0.0/16"], ["10.1.2.3/16"], "did you mean '10.1.0.0/16'?"),
        ("firewall_operator_networks", ["fd00::/16"], [], "at least 1 item"),
        ("firewall_public_tcp", [80, 443], [80, 70000], "nearest: 65535"),
        ("firewall_operator_access", "networks", "lan", "allowed: 'networks' or 'vpn'"),
        ("firewall_public_udp", [443], ["443"], "did you mean 443?"),
        ("firewall_pod_interfaces", [], ["cni/0"], "not a network interface name"),
        ("firewall_pod_tcp", [6443], [0], "nearest: 1"),
        ("firewall_client_new_per_s", 1, 0, "nearest: 1"),
        ("firewall_client_connections", 1, 0, "nearest: 1"),
        ("vpn_port", 51820, 0, "nearest: 1"),
        ("vpn_endpoint", "vpn.example.org", "vpn.example.org:51820", "did you mean 'vpn.example.org'?"),
        ("vpn_network", "10.99.0.0/24", "10.99.0.1/24", "did you mean '10.99.0.0/24'?"),
        ("vpn_network", "10.98.0.0/30", "10.98.0.0/31", "too small for peers"),
        ("vpn_network", "10.98.0.0/16", "192.168.0.0/16", "overlaps firewall_operator_networks 192.168.1.0/24"),
        ("vpn_network_ipv6", "fd00::/64", "10.99.0.0/24", "is not an IPv6 network"),
        ("vpn_keepalive_s", 0, -1, "nearest: 0"),
        ("vpn_services", {"grafana": 3000}, {"Grafana": 3000}, "did you mean 'grafana'?"),
        ("vpn_services", {"a": 1, "b": 2}, {"a": 1, "b": 1}, "'a' shares port 1 with another service"),
        ("vpn_peers", [PEER], [PEER | {"name": "My Laptop"}], "string should match pattern"),
        ("vpn_peers", [PEER], [PEER | {"public_key": "aGVsbG8="}], "not a WireGuard public key"),
        ("vpn_peers", [PEER, OTHER], [PEER, OTHER | {"name": "laptop"}], "have the same name"),
        ("vpn_peers", [PEER, OTHER], [PEER, OTHER | {"public_key": PEER["public_key"]}], "have the same public key"),
        (
            "vpn_peers",
            [PEER, OTHER | {"allowed_ips": ["10.99.0.128/25"]}],
            [PEER, OTHER | {"allowed_ips": ["10.99.0.0/29"]}],
            "allowed_ips 10.99.0.0/29 of 'phone' overlaps 10.99.0.1/32 of the machine itself",
        ),
        (
            "vpn_peers",
            [PEER, OTHER],
            [PEER, OTHER | {"allowed_ips": PEER["allowed_ips"]}],
            "allowed_ips 10.99.0.2/32 of 'phone' overlaps 10.99.0.2/32 of 'laptop'",
        ),
        (
            "vpn_peers",
            [PEER | {"allowed_ips": ["10.99.0.2/32", "192.168.2.0/24"]}],
            [PEER | {"allowed_ips": ["10.99.0.2/32", "192.168.0.0/16"]}],
            "allowed_ips of 'laptop', 192.168.0.0/16, overlaps firewall_operator_networks 192.168.1.0/24",
        ),
        (
            "vpn_peers",
            [PEER],
            [PEER | {"allowed_ips": ["0.0.0.0/0"]}],
            "overlaps 10.99.0.1/32 of the machine itself",
        ),
        ("vpn_peers", [PEER], [PEER | {"allowed_ips": ["10.42.7.0/24"]}], "overlaps postgres_client_networks"),
        ("vpn_peers", [PEER], [PEER | {"allowed_ips": ["10.88.0.0/24"]}], "overlaps host_service_address"),
        ("postgres_port", 5432, "5432", "did you mean 5432?"),
        ("postgres_shared_buffers_percent", 15, 99, "nearest: 90"),
        ("offsite_address", "backup.example.org", "https://backup.example.org/", "did you mean 'backup.example.org'?"),
        ("offsite_address", "fd00::1", "203.0.113", "not an IP address"),
        ("offsite_kind", "machine", "S3", "did you mean 's3'?"),
        ("offsite_kind", "machine", "s3", "needs offsite_s3"),
        ("offsite_s3", None, S3, "offsite_s3 needs offsite_kind 's3'"),
        ("offsite_kind", "machine", "sftp", "needs offsite_sftp with host, port, user, path and host_keys"),
        ("offsite_sftp", None, SFTP, "offsite_sftp needs offsite_kind 'sftp'"),
        ("offsite_copies_days", 7, 1, "nearest: 7"),
        ("offsite_free_mb", 0, -1, "nearest: 0"),
        ("backups_offsite", None, 1, "did you mean '1'?"),
        ("backups_archive_timeout_s", 60, 1, "nearest: 10"),
        ("backups_repo1_days", 7, 6, "nearest: 7"),
        ("backups_repo2_days", 7, 6, "nearest: 7"),
        ("backups_files_days", 7, 6, "nearest: 7"),
        ("backups_processes", 1, 0, "nearest: 1"),
        ("backups_drill_port", 5433, 0, "nearest: 1"),
        ("backups_full_calendar", "Sun 02:30", "Sun 2:30pm", "not a systemd calendar expression"),
        ("loki_days", 30, 14, "nearest: 30"),
        ("loki_max_disk_mb", 512, 100, "nearest: 512"),
        ("loki_memory_mb", 128, 64, "nearest: 128"),
        ("syslog_ng_loki_url", "https://logs.example.org", "logs.example.org", "not a URL"),
        ("syslog_ng_buffer_mb", 16, 1, "nearest: 16"),
        ("watcher_port", 8010, 0, "nearest: 1"),
        ("watcher_retention_mb", 256, 10, "nearest: 256"),
        ("watcher_disk_free_percent", 1, 0, "nearest: 1"),
        ("watcher_copy_age_s", 3600, 60, "nearest: 3600"),
        ("grafana_address", "10.0.0.1", "everywhere", "not an IP address"),
        ("grafana_memory_mb", 128, 1, "nearest: 128"),
        ("redis_maxmemory_mb", 64, 1, "nearest: 8"),
        ("services_runtime", "k3s", "k8s", "did you mean 'k3s'?"),
        ("k3s_node_ip", "10.1.0.5", "10.1.0.5/24", "did you mean '10.1.0.5'?"),
        ("k3s_api_names", ["k3s.example.org"], ["https://k3s.example.org"], "did you mean 'k3s.example.org'?"),
        ("k3s_registries", [GHCR], [GHCR | {"host": "https://ghcr.io"}], "did you mean 'ghcr.io'?"),
        (
            "k3s_registries",
            [GHCR | {"host": "registry.example.org:5000"}],
            [GHCR | {"host": "ghcr.io:0"}],
            "not a TCP port",
        ),
        ("k3s_registries", [GHCR], [GHCR | {"name": "ghcr.io"}], "string should match pattern"),
        ("k3s_audit_days", 30, 0, "nearest: 1"),
        ("argocd_repository", None, "https://example.org/deploy.git", "string should match pattern"),
        (
            "argocd_known_hosts",
            ["example.org " + KEY.rsplit(" ", 1)[0]],
            ["example.org"],
            "string should match pattern",
        ),
        ("argocd_revision", "main", "main branch", "string should match pattern"),
        ("argocd_path", "root/production", "/root", "string should match pattern"),
        ("argocd_port", 8443, 0, "nearest: 1"),
        ("offsite_deploy_repository", True, "yes", "should be a valid boolean"),
        ("dns_zone", "example.org", "https://example.org/", "did you mean 'example.org'?"),
        ("edge_acme", "staging", "prod", "did you mean 'production'?"),
        ("edge_acme_root", None, "/etc/ssl/ca.pem", "string should match pattern"),
        ("edge_http3", False, "no", "valid boolean"),
        ("edge_hsts_days", 0, -1, "nearest: 0"),
        ("edge_header_timeout_s", 1, 0, "nearest: 1"),
        ("edge_body_timeout_s", 1, 0, "nearest: 1"),
        ("firewall_public_udp", [443], [0], "nearest: 1"),
        ("prometheus_retention_days", 30, 0, "nearest: 1"),
        ("prometheus_retention_mb", 1024, 10, "nearest: 256"),
        ("prometheus_scrape_interval_s", 15, 1, "nearest: 5"),
        ("prometheus_memory_mb", 200, 50, "nearest: 96"),
        ("prometheus_set_memory_mb", 600, 100, "nearest: 256"),
        ("prometheus_pace", 10, 0, "nearest: 1"),
        ("alertmanager_channels", [SLACK | {"channel": "#ops"}], [SLACK | {"channel": "ops"}], "should match pattern"),
        ("alertmanager_channels", [SLACK], [], "alertmanager_unattended = True"),
        ("alertmanager_channels", [SLACK], [SLACK, SLACK], "'slack' is used twice"),
        ("alertmanager_channels", [SLACK], [SLACK | {"name": "watchdog"}], "has this name"),
        ("alertmanager_channels", [SLACK], [SLACK | {"kind": "msteams"}], "which is 0.28 in Debian 13"),
        (
            "alertmanager_channels",
            [SLACK | {"priorities": ["P1"]}],
            [SLACK | {"priorities": ["P4"]}],
            "'P1', 'P2' or 'P3'",
        ),
        (
            "alertmanager_channels",
            [{"name": "t", "kind": "telegram", "chat_id": -1}],
            [{"name": "t", "kind": "telegram"}],
            "missing",
        ),
        ("alertmanager_digest_day", None, "mondays", "allowed: 'monday'"),
        ("alertmanager_unattended", True, 1, "valid boolean"),
        ("alertmanager_watchdog", True, 1, "valid boolean"),
        ("alertmanager_runbook_url", "https://docs.example.org/triage", "", "at least 1 character"),
        ("secrets_backend", "age", "agee", "did you mean 'age'?"),
    ],
)
def test_each_rule_takes_the_valid_and_explains_the_invalid(values, key, valid, invalid, told):
    parse(values | {key: valid})
    with pytest.raises(ConfigError) as error:
        parse(values | {key: invalid}, source="group_data/production.py")
    message = str(error.value)
    assert "group_data/production.py: 1 problem in the configuration" in message
    assert key in message
    assert told in message
    assert "next:" in message


def test_old_settings_for_slack_become_a_channel(values):
    old = {"alertmanager_slack": True, "alertmanager_slack_channel": "#ops"}
    (slack,) = parse(values | old).alertmanager.channels
    assert (slack.name, slack.kind, slack.channel) == ("slack", "slack", "#ops")
    assert parse(values | {"watcher_ping_port": 8011}).watcher.port == 8011
    assert parse(values | {"alertmanager_slack": False}).alertmanager.channels == [], "that was said on purpose"


def test_an_unknown_key_gets_the_nearest_one(values):
    with pytest.raises(ConfigError, match=r"redis_maxmemory: unknown key; did you mean 'redis_maxmemory_mb'\?"):
        parse(values | {"redis_maxmemory": 1})


def test_all_problems_are_told_at_once(values):
    with pytest.raises(ConfigError, match="3 problems"):
        parse(values | {"redis_port": 0, "edge_acme": "x", "nonsense": 1})


def test_a_missing_key_is_named(values):
    with pytest.raises(ConfigError, match="host_name: missing; it is REQUIRED"):
        parse({key: value for key, value in values.items() if key != "host_name"})


def test_pyinfras_own_keys_are_not_configuration(values):
    parse(values | {"ssh_hostname": "10.0.0.1", "_sudo": True, "machine_identity": "x"})


def test_the_lab_group_is_valid():
    assert load("lab", host_operator_keys=[KEY]).edge.acme == "internal"


def test_production_as_shipped_asks_for_the_operators_key():
    with pytest.raises(ConfigError, match="host_operator_keys"):
        load("production")


@pytest.mark.parametrize("name", ["podman", "stand-in"])
def test_podman_instead_of_k3s_is_refused_in_production(values, name):
    with pytest.raises(ConfigError, match="'podman' is for the lab"):
        parse(values | {"services_runtime": name})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"owner": "nobody"}, "owner 'nobody' of database 'parking' is not among the roles"),
        ({"runtime": "nobody"}, "runtime 'nobody' of database 'parking' is not among the roles"),
        ({"owner": "parking"}, "role 'parking' of database 'parking' is used twice"),
        ({"reader": "monitoring"}, "reader 'monitoring' of database 'parking' is among the roles"),
        ({"reader": "minipc"}, "role 'minipc' of database 'parking' is used twice"),
        ({"reader": "postgres"}, "role 'postgres' of database 'parking' is used twice"),
        ({"name": "postgres"}, "database 'postgres' belongs to PostgreSQL"),
    ],
)
def test_the_roles_of_a_database_are_separate(values, changed, said):
    with pytest.raises(ValidationError, match=said):
        PostgresSettings.model_validate(POSTGRES | {"databases": [WORKLOAD | changed]})


@pytest.mark.parametrize(
    ("name", "membership"),
    [("parking", "parking_owner"), ("monitoring", "pg_execute_server_program"), ("monitoring", "pg_read_all_data")],
)
def test_no_role_may_have_a_way_to_the_machine(values, name, membership):
    roles = [*ROLES, {"name": "monitoring", "memberships": []}]
    changed = [role | {"memberships": [membership]} if role["name"] == name else role for role in roles]
    with pytest.raises(ValidationError, match=f"'{name}' must not be a member of '{membership}'"):
        PostgresSettings.model_validate(POSTGRES | {"roles": changed})


@pytest.mark.parametrize("key", sorted(MOVED))
def test_a_key_that_moved_to_the_service_files_says_where(values, key):
    with pytest.raises(ConfigError, match=rf"{key}: it is now `{MOVED[key]}` in services/NAME.yaml"):
        parse(values | {key: []})


@pytest.mark.parametrize("key", sorted(GONE))
def test_a_key_that_is_gone_says_what_to_do(values, key):
    with pytest.raises(ConfigError, match=f"{key}: it no longer exists; {re.escape(GONE[key])}"):
        parse(values | {key: None})


def test_the_old_name_of_the_runtime_is_still_accepted(values):
    assert parse(values | {"workload_runtime": "k3s"}).services.runtime == "k3s"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"edge_acme": "other"}, "needs edge_acme_url"),
        ({"edge_acme": "production", "edge_acme_url": "https://acme.lan/dir"}, "need edge_acme 'other'"),
        ({"edge_acme": "other", "edge_acme_url": "http://acme.lan/dir"}, "https"),
        ({"edge_http3": True}, "needs 443 in firewall_public_udp"),
    ],
)
def test_settings_of_the_public_door_must_fit_each_other(values, given, told):
    with pytest.raises(ConfigError, match=told):
        parse(values | given)


def test_another_acme_server_and_http3_are_allowed(values):
    parse(values | {"edge_acme": "other", "edge_acme_url": "https://acme.lan/dir"})
    parse(values | {"edge_http3": True, "firewall_public_udp": [443]})


def test_the_vpn_as_the_only_way_in_needs_somebody_who_can_use_it(values):
    parse(values | {"firewall_operator_access": "vpn", "vpn_peers": [PEER]})
    with pytest.raises(ConfigError, match=r"would lock everybody out; add a client: `minipc vpn add NAME`"):
        parse(values | {"firewall_operator_access": "vpn"})


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "all.py").write_text("x = = 1")
    with pytest.raises(ConfigError, match=r"all\.py cannot be read"):
        group_data("lab", tmp_path)


def test_values_that_are_written_twice_agree(values):
    assert values["argocd_port"] in values["firewall_operator_tcp"]
    assert values["vpn_services"].items() <= MONITORING.items()
    assert values["postgres_port"] != values["backups_drill_port"]


def test_every_key_says_whether_it_is_required(values):
    """Documentation and rules can't drift apart: each key of all.py has a REQUIRED or OPTIONAL comment."""
    from minipc.core.paths import ROOT

    lines = (ROOT / "group_data/all.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if " = " in line and line[0].isalpha():
            comment = []
            above = number - 1
            while above >= 0 and lines[above].startswith("#"):
                comment.append(lines[above])
                above -= 1
            assert any(part.startswith(("# REQUIRED", "# OPTIONAL")) for part in comment), line
