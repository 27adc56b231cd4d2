"""Redis: a cache that stays within its bounds, forgets, and lets nobody in but its users."""

from __future__ import annotations

import secrets as random

import pytest

from tests.verify.conftest import eventually

UNIT = "redis-server.service"
# Each is harmless should it be allowed after all.
DANGEROUS = [
    "CONFIG GET maxmemory",
    "KEYS nothing:*",
    "ACL LIST",
    "CLIENT LIST",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "SHUTDOWN ABORT",
    "SAVE",
    "FLUSHALL",
]


def kinds(answers) -> list[str]:
    """The first word of each answer; redis-cli prints an empty line after an error."""
    return [answer.split()[0] for answer in answers if answer]


@pytest.fixture(scope="session")
def as_monitoring(redis, secrets):
    return lambda *commands: redis(commands, "monitoring", secrets["redis.password.monitoring"].reveal())


@pytest.fixture(scope="session")
def info(as_monitoring):
    """Redis's own account of itself, at the moment of the call."""
    return lambda: dict(line.split(":", 1) for line in as_monitoring("INFO everything") if ":" in line)


@pytest.fixture(scope="session")
def config(as_monitoring):
    found = as_monitoring("CONFIG GET *")
    return dict(zip(found[::2], found[1::2], strict=False))


def test_it_listens_on_loopback_and_the_service_address_only(listeners, settings):
    found = {address for address, port, program in listeners if port == settings.redis.port or "redis" in program}
    assert found == {"127.0.0.1", "::1", settings.host.service_address}


def test_a_stranger_is_refused(redis):
    found = redis(
        ["PING", "GET workload:parking", "HELLO 3", "AUTH default ''", "AUTH workload wrong", "AUTH nobody x"]
    )
    assert kinds(found) == ["NOAUTH"] * 3 + ["WRONGPASS"] * 3


def test_each_user_logs_in_with_its_password(redis, settings, secrets):
    for user in settings.redis.users:
        assert redis(["PING"], user.name, secrets[f"redis.password.{user.name}"].reveal()) == ["PONG"], user.name


def test_the_service_reaches_its_own_keys_and_no_others(as_workload):
    key = f"verify:{random.token_hex(6)}"
    found = as_workload(
        f"SET workload:{key} mine EX 60",
        f"GET workload:{key}",
        f"DEL workload:{key}",
        f"SET {key} theirs",
        f"GET {key}",
        f"""EVAL "return redis.call('GET', '{key}')" 0""",
    )
    assert found[:3] == ["OK", "mine", "1"]
    refusals = [answer for answer in found[3:] if answer]
    assert len(refusals) == 3
    assert all("No permissions to access a key" in answer or "can't access" in answer for answer in refusals), refusals


def test_the_service_may_do_nothing_dangerous(as_workload):
    found = as_workload(*DANGEROUS)
    assert kinds(found) == ["NOPERM"] * len(DANGEROUS)


def test_monitoring_sees_no_data(as_monitoring):
    found = as_monitoring("GET workload:parking", "SET workload:parking x", "SCAN 0", "FLUSHALL")
    assert kinds(found) == ["NOPERM"] * 4


def test_memory_is_bounded_and_the_least_used_goes_first(config, settings):
    assert int(config["maxmemory"]) == settings.redis.maxmemory_mb * 1024**2
    assert config["maxmemory-policy"] == "allkeys-lru"


def test_nothing_is_written_to_disk(config, sh):
    assert (config["save"], config["appendonly"]) == ("", "no")
    assert sh("find /var/lib/redis -type f") == ""


def test_the_passwords_on_disk_are_redis_own(sh):
    assert sh("stat -c '%U %a' /etc/redis/users.acl") == "redis 640"
    assert sh("ls /etc/redis/*.acl /etc/redis/*.conf").split() == ["/etc/redis/redis.conf", "/etc/redis/users.acl"]


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure):
    assert (units(UNIT)["UnitFileState"], units(UNIT)["Restart"]) == ("enabled", "always")
    assert exposure(UNIT) < 2.5


def test_a_full_cache_evicts_and_goes_on_taking(disturb, as_workload, info, settings):
    keys = [f"workload:verify:full:{number}" for number in range(settings.redis.maxmemory_mb + 8)]
    before = info()
    try:
        # SETRANGE makes a value of 1 MiB from one byte sent.
        found = as_workload(*(f"SETRANGE {key} 1048575 x" for key in keys))
        after = info()
    finally:
        as_workload(f"UNLINK {' '.join(keys)}")
    assert found == ["1048576"] * len(keys)
    assert int(after["evicted_keys"]) > int(before["evicted_keys"])
    assert int(after["used_memory"]) <= settings.redis.maxmemory_mb * 1024**2 * 1.1


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_it_comes_back_and_has_forgotten(disturb, as_workload, info, how):
    assert as_workload("SET workload:verify:mark 1", "GET workload:verify:mark") == ["OK", "1"]
    before = info()["run_id"]
    disturb(f"systemctl restart {UNIT}" if how == "restart" else f"systemctl kill -s KILL {UNIT}")

    def is_back():
        return as_workload("PING") == ["PONG"] and info()["run_id"] != before

    assert eventually(is_back, within_s=20), "not back within 20 s"
    assert as_workload("EXISTS workload:verify:mark") == ["0"]
    assert disturb("find /var/lib/redis -type f") == ""
