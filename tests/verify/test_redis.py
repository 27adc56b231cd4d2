"""Checks of Redis as a cache: limits, eviction, users and their rights."""

from __future__ import annotations

import secrets as random

import pytest

from minipc.services.queues import queues
from tests.verify.conftest import eventually, not_exercised

UNIT = "redis-server.service"
# Each of them is harmless even if it is allowed.
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
    # An endless script stops the cache for everybody.
    """EVAL "return 1" 0""",
    "SCRIPT LOAD x",
    "FUNCTION LIST",
]


def kinds(answers) -> list[str]:
    """Return the first word of each answer; redis-cli prints an empty line after an error."""
    return [answer.split()[0] for answer in answers if answer]


@pytest.fixture(scope="session")
def as_monitoring(redis, secrets):
    return lambda *commands: redis(commands, "monitoring", secrets["redis.password.monitoring"].reveal())


@pytest.fixture(scope="session")
def info(as_monitoring):
    """Return a function for the output of INFO at the moment of the call."""
    return lambda: dict(line.split(":", 1) for line in as_monitoring("INFO everything") if ":" in line)


@pytest.fixture(scope="session")
def config(as_monitoring):
    found = as_monitoring("CONFIG GET *")
    return dict(zip(found[::2], found[1::2], strict=False))


def test_it_listens_on_loopback_and_the_service_address_only(listeners, settings):
    """Redis listens only on loopback and the service address."""
    found = {address for address, port, program in listeners if port == settings.redis.port or "redis" in program}
    assert found == {"127.0.0.1", "::1", settings.host.service_address}


@pytest.fixture(scope="session")
def own_key(settings, cache_user):
    """Return a function for a key that the service may use."""
    (pattern, *_) = settings.services.named(cache_user).redis_keys
    return lambda name: pattern.replace("*", name)


def test_a_stranger_is_refused(redis):
    """Redis refuses clients without a valid login."""
    found = redis(["PING", "GET x", "HELLO 3", "AUTH default ''", "AUTH monitoring wrong", "AUTH nobody x"])
    assert kinds(found) == ["NOAUTH"] * 3 + ["WRONGPASS"] * 3


def test_each_user_logs_in_with_its_password(redis, settings, secrets):
    """Each Redis user can log in with its password."""
    for user in settings.redis.users:
        assert redis(["PING"], user.name, secrets[f"redis.password.{user.name}"].reveal()) == ["PONG"], user.name


def test_the_service_reaches_its_own_keys_and_no_others(as_cache_user, own_key):
    """The service can use its own Redis keys and no others."""
    key = f"verify:{random.token_hex(6)}"
    mine = own_key(key)
    found = as_cache_user(
        f"SET {mine} mine EX 60",
        f"GET {mine}",
        f"DEL {mine}",
        f"SET {key} theirs",
        f"GET {key}",
    )
    assert found[:3] == ["OK", "mine", "1"]
    refusals = [answer for answer in found[3:] if answer]
    assert len(refusals) == 2
    assert all("No permissions to access a key" in answer or "can't access" in answer for answer in refusals), refusals


def test_the_service_may_do_nothing_dangerous(as_cache_user):
    """The service cannot run administrative Redis commands."""
    found = as_cache_user(*DANGEROUS)
    assert kinds(found) == ["NOPERM"] * len(DANGEROUS)


def test_monitoring_sees_no_data(as_monitoring):
    """The monitoring user cannot read data in Redis."""
    found = as_monitoring("GET x", "SET x y", "SCAN 0", "FLUSHALL")
    assert kinds(found) == ["NOPERM"] * 4


def test_memory_is_bounded_and_the_least_used_goes_first(config, settings):
    """Redis has a memory limit and evicts the least recently used keys."""
    assert int(config["maxmemory"]) == settings.redis.maxmemory_mb * 1024**2
    assert config["maxmemory-policy"] == "allkeys-lru"


def test_nothing_is_written_to_disk(config, sh):
    """Redis writes no data to disk."""
    assert (config["save"], config["appendonly"]) == ("", "no")
    assert sh("find /var/lib/redis -type f") == ""


def test_the_passwords_on_disk_are_redis_own(sh, settings):
    """Only Redis's own account can read its user files."""
    own = ["/etc/redis/users.acl", *(each.users for each in queues(settings))]
    expected = ["/etc/redis/redis.conf", *own, *(each.configuration for each in queues(settings))]
    assert sorted(sh("ls /etc/redis/*.acl /etc/redis/*.conf").split()) == sorted(expected)
    assert set(sh(f"stat -c '%U %a' {' '.join(own)}").splitlines()) == {"redis 640"}


@pytest.fixture(scope="session")
def declared_queues(settings):
    found = queues(settings)
    if not found:
        not_exercised("no service declares a queue")
    return found


def ask_queue(script, settings, secrets, queue, *commands, user=None):
    user = user or queue.service
    password = secrets[f"redis.password.{user}"].reveal()
    cli = f"redis-cli -h {settings.host.service_address} -p {queue.port} --no-auth-warning --user {user}"
    lines = "\n".join(commands)
    return script(f"REDISCLI_AUTH={password} {cli} <<'END'\n{lines}\nEND").splitlines()


def test_a_queue_forgets_nothing(script, settings, secrets, declared_queues):
    """Each queue refuses writes when it is full, and writes each change to disk at once."""
    for queue in declared_queues:
        found = ask_queue(script, settings, secrets, queue, "CONFIG GET *", user="monitoring")
        values = dict(zip(found[::2], found[1::2], strict=False))
        kept = (values["maxmemory-policy"], values["appendonly"], values["appendfsync"])
        assert kept == ("noeviction", "yes", "always"), queue.service
        assert int(values["maxmemory"]) == queue.memory_mb * 1024**2, queue.service


def test_a_queue_is_for_its_service_only(script, settings, secrets, declared_queues, units):
    """Each service can use its own queue, cannot administer it, and no other user of Redis can log in to it."""
    for queue in declared_queues:
        key = queue.keys[0].replace("*", f"verify:{random.token_hex(6)}")
        found = ask_queue(script, settings, secrets, queue, f"LPUSH {key} 1", f"RPOP {key}", "FLUSHALL", "CONFIG GET *")
        assert found[:2] == ["1", "1"], queue.service
        assert kinds(found[2:]) == ["NOPERM", "NOPERM"], queue.service
        assert units(queue.unit)["UnitFileState"] == "enabled"


def test_the_unit_starts_at_boot_and_has_only_what_it_needs(units, exposure):
    """Redis starts at boot and runs with few privileges."""
    assert (units(UNIT)["UnitFileState"], units(UNIT)["Restart"]) == ("enabled", "always")
    assert exposure(UNIT) < 2.5


def test_a_cache_that_hangs_is_killed_by_a_restart(units):
    """A restart kills Redis if it does not respond.

    Debian's unit would wait for ever.
    """
    assert units(UNIT)["TimeoutStopUSec"] == "10s"


def test_a_full_cache_evicts_and_goes_on_taking(disturb, as_cache_user, own_key, info, settings):
    """A full cache evicts old keys and accepts new ones."""
    keys = [own_key(f"verify:full:{number}") for number in range(settings.redis.maxmemory_mb + 8)]
    before = info()
    try:
        # SETRANGE makes a value of 1 MiB from one byte sent.
        found = as_cache_user(*(f"SETRANGE {key} 1048575 x" for key in keys))
        after = info()
    finally:
        as_cache_user(f"UNLINK {' '.join(keys)}")
    assert found == ["1048576"] * len(keys)
    assert int(after["evicted_keys"]) > int(before["evicted_keys"])
    assert int(after["used_memory"]) <= settings.redis.maxmemory_mb * 1024**2 * 1.1


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_it_comes_back_and_has_forgotten(disturb, as_cache_user, own_key, info, how):
    """Redis restarts with an empty cache."""
    mark = own_key("verify:mark")
    assert as_cache_user(f"SET {mark} 1", f"GET {mark}") == ["OK", "1"]
    before = info()["run_id"]
    disturb(f"systemctl restart {UNIT}" if how == "restart" else f"systemctl kill -s KILL {UNIT}")

    def is_back():
        return as_cache_user("PING") == ["PONG"] and info()["run_id"] != before

    assert eventually(is_back, within_s=20), "not back within 20 s"
    assert as_cache_user(f"EXISTS {mark}") == ["0"]
    assert disturb("find /var/lib/redis -type f") == ""
