"""Test the guards with plain pyinfra: no change on a wrong machine, no failure that looks like a success."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from minipc.core.environment import LAB
from minipc.core.paths import ROOT
from minipc.evidence.event_stream import OperationEnd, OperationStart, read
from minipc.remote import operator_lock
from minipc.remote.inventory import the_target
from rehearsal import lab
from rehearsal.lab.inventory import entry
from tests.lab.conftest import BIN, converge, on, run
from tests.verify.conftest import eventually

EVERYTHING = "find /etc /opt /var/lib/minipc /usr/local -type f -newer /run/marker 2>/dev/null | sort"


@pytest.fixture
def marked(site):
    """Return a machine on which later writes are recognised."""
    on(site, "sleep 0.02; touch /run/marker; sleep 0.02")
    return site


def pyinfra(inventory: Path, *options: str, env=None):
    return run("pyinfra", "-y", *options, str(inventory), "deploys/redis.py", env=env, timeout_s=120)


def test_another_machine_is_refused_before_any_write(marked, inventory):
    other = inventory(marked, machine_identity="00000000-0000-4000-8000-000000000000")
    done = pyinfra(other)
    assert done.code == 3, done.output
    assert "this is another machine" in done.output
    assert on(marked, EVERYTHING) == ""


def test_a_machine_that_was_never_adopted_is_refused(blank):
    done = converge(blank, "redis")
    assert done.code == 3, done.output
    assert "minipc adopt" in done.output
    assert "redis" not in on(blank, "ls /etc")


def test_the_second_of_two_operators_is_refused(site):
    """It sees who has the lock. When the first one's computer crashes, the lock is gone."""
    words = ["apply", "release", "--inventory", "lab", "--host", site.name]
    with operator_lock.held(the_target(LAB, site.name), "minipc rebuild"):
        refused = run("minipc", *words)
        assert refused.code == 3, refused.output
        assert "minipc rebuild" in refused.output
        assert "minipc unlock" in refused.output
    first = subprocess.Popen([str(BIN / "minipc"), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: "minipc apply" in on(site, f"cat {operator_lock.FILE}"), within_s=20)
    finally:
        first.kill()
        first.wait()
    assert run("minipc", *words).code in (0, 4)


def test_another_host_key_is_refused(marked, inventory, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True)
    key = " ".join((tmp_path / "k.pub").read_text().split()[:2])
    (tmp_path / "known_hosts").write_text(f"{marked.operator_ipv4} {key}\n")
    done = pyinfra(inventory(marked, ssh_known_hosts_file=str(tmp_path / "known_hosts")))
    assert done.code != 0
    assert "does not match" in done.output
    assert on(marked, EVERYTHING) == ""


def test_an_unknown_host_key_is_refused(marked, inventory, tmp_path):
    (tmp_path / "known_hosts").write_text("")
    done = pyinfra(inventory(marked, ssh_known_hosts_file=str(tmp_path / "known_hosts")))
    assert done.code != 0
    assert "found in known_hosts" in done.output


def test_an_unreachable_machine_is_an_error(marked, inventory):
    done = pyinfra(inventory(marked, ssh_hostname="10.77.0.254", ssh_connect_retries=0))
    assert done.code != 0
    assert "10.77.0.254" in done.output or "Could not connect" in done.output


def test_not_root_is_refused(marked, inventory):
    done = pyinfra(inventory(marked, ssh_user="ops"))
    assert done.code == 3, done.output
    assert "converging needs root" in done.output


def test_a_missing_age_key_stops_the_run_and_names_it(marked):
    from minipc.secrets.backends import age_key_file

    key = age_key_file("lab")
    hidden = key.with_suffix(".hidden")
    key.rename(hidden)
    try:
        done = converge(marked, "redis")
    finally:
        hidden.rename(key)
    assert done.code == 1, done.output
    assert str(key) in done.output
    assert "Traceback" not in done.output
    assert on(marked, EVERYTHING) == ""


def test_a_wrong_setting_stops_the_run(marked, inventory):
    done = pyinfra(inventory(marked, redis_maxmemory_mb=1))
    assert done.code == 1, done.output
    assert "redis_maxmemory_mb = 1: too small; allowed: 8 or more" in done.output
    assert on(marked, EVERYTHING) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "nobody"], "matches no machine"),
        (["--no-wait"], "--no-wait exits 0"),
        (["--dry"], "--dry together with -y"),
    ],
)
def test_options_that_look_like_success_are_refused(site, options, message):
    done = run("pyinfra", "-y", *options, "inventory/lab.py", "deploys/redis.py")
    assert done.code == 3, done.output
    assert message in done.output


def test_a_component_before_what_it_needs_is_refused(blank):
    from playbooks.adopt import adopt

    adopt(LAB, entry(blank), blank.host_key_fingerprint)
    on(blank, "touch /run/marker; sleep 0.1")
    for command in ("apply", "plan"):
        done = run("minipc", command, "redis", "--inventory", "lab", "--host", blank.name)
        assert done.code == 3, done.output
        assert "`redis` needs `host`" in " ".join(done.output.split())
    done = converge(blank, "postgres")
    assert done.code == 3, done.output
    assert "`postgres` needs `repositories`" in done.output
    assert on(blank, EVERYTHING) == ""


def test_a_full_disk_is_an_error_before_anything_changes(lab_ready):
    with lab.machine("test-small", disk_gb=1) as machine:
        from playbooks.adopt import adopt

        adopt(LAB, entry(machine), machine.host_key_fingerprint)
        done = converge(machine, "redis")
    assert done.code == 3, done.output
    assert "MB free below /var" in done.output


def test_a_dead_mirror_is_an_error_that_names_it(lab_ready, inventory):
    with lab.machine("test-mirror") as machine:
        from playbooks.adopt import adopt

        adopt(LAB, entry(machine), machine.host_key_fingerprint)
        path = inventory(machine, host_apt_mirror="http://127.0.0.1:9/debian")
        done = run("pyinfra", "-y", str(path), "deploys/host.py", timeout_s=280)
    assert done.code == 1, done.output
    assert "127.0.0.1:9" in done.output


def test_adopt_refuses_a_machine_with_data(site):
    done = run("minipc", "adopt", site.name, "--inventory", "lab", "--fingerprint", "SHA256:nonsense")
    assert done.code == 3, done.output
    assert "shows host key" in done.output
    with lab.machine("test-used") as used:
        on(used, "install -d /var/lib/postgresql/17/main && echo 17 > /var/lib/postgresql/17/main/PG_VERSION")
        fingerprint = used.host_key_fingerprint
        done = run("minipc", "adopt", used.name, "--inventory", "lab", "--fingerprint", fingerprint)
        assert done.code == 3, done.output
        assert "not blank" in done.output
        on(used, "test ! -e /etc/minipc/identity")


def test_adopting_again_keeps_the_identity(site):
    before = on(site, "cat /etc/minipc/identity")
    done = run("minipc", "adopt", site.name, "--inventory", "lab", "--fingerprint", site.host_key_fingerprint)
    assert done.code == 0, done.output
    assert on(site, "cat /etc/minipc/identity") == before


def _start(machine, events: Path, *deploys: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            str(BIN / "pyinfra"),
            "-y",
            "--limit",
            machine.name,
            "inventory/lab.py",
            *(f"deploys/{name}.py" for name in deploys),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"MINIPC_EVENTS": str(events)},
    )


def _wait_for(events: Path, kind: type, component: str, name: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if events.exists() and any(
            isinstance(event, kind) and (event.component, event.name) == (component, name) for event in read(events)
        ):
            return
        time.sleep(0.002)
    raise AssertionError(f"{component}: {name} never came")


def test_ctrl_c_is_not_a_success_and_shows_how_to_resume(site, tmp_path):
    process = _start(site, tmp_path / "events", "host", "redis")
    _wait_for(tmp_path / "events", OperationStart, "host", "Install base packages")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert b"run the same command again" in output


def test_a_lost_connection_is_not_a_success(site, tmp_path):
    on(site, "cp /root/.bashrc /root/.bashrc.kept; echo 'sleep 1' >> /root/.bashrc")  # time to be caught
    process = _start(site, tmp_path / "events", "host", "redis")
    _wait_for(tmp_path / "events", OperationStart, "host", "Install base packages")
    # Every session ends, our own as well.
    on(site, "mv /root/.bashrc.kept /root/.bashrc; pkill -9 -f 'sshd-session: root'", check=False)
    try:
        output, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode != 0, output
    assert converge(site, "host", "redis").code == 0


def test_killed_between_placing_and_restarting_the_restart_still_happens(site, tmp_path, inventory):
    """After kill -9 the next run finds the file already placed, and still restarts the service."""
    pid = "systemctl show -p MainPID --value redis-server"
    for attempt in range(8):
        on(site, f"sed -i 's/^slowlog-log-slower-than .*/slowlog-log-slower-than {attempt + 1}/' /etc/redis/redis.conf")
        on(site, "systemctl restart redis-server; rm -f /var/lib/minipc/stamps/redis-server.service")
        events = tmp_path / f"events-{attempt}"
        process = _start(site, events, "redis")
        _wait_for(events, OperationEnd, "redis", "Configure Redis")
        process.kill()
        process.wait()
        time.sleep(1)
        if on(site, "cat /var/lib/minipc/stamps/redis-server.service 2>/dev/null || true") == "":
            break
    else:
        pytest.fail("the converge was never caught between placing and restarting")
    assert "slowlog-log-slower-than 10000" in on(site, "cat /etc/redis/redis.conf"), "the file was placed"
    before = on(site, pid)
    resumed = converge(site, "redis")
    assert resumed.code == 0, resumed.output
    assert on(site, pid) != before, "the restart that was due did not happen"
    again = on(site, pid)
    assert converge(site, "redis").code == 0
    assert on(site, pid) == again, "it restarted twice"


def test_settings_that_would_lock_the_operator_out_are_refused(marked, inventory):
    done = pyinfra(inventory(marked, firewall_operator_networks=["192.0.2.0/24"]))
    assert done.code == 3, done.output
    assert "the firewall would lock you out" in done.output
    assert on(marked, EVERYTHING) == ""


def test_a_manual_edit_is_reverted_and_the_unit_is_restarted(site):
    """The file is restored, and the unit no longer uses the edit that a restart loaded."""
    password = "$(sed -n 's/^user monitoring on >\\([^ ]*\\).*/\\1/p' /etc/redis/users.acl)"
    slowlog = (
        f'export REDISCLI_AUTH="{password}"; redis-cli --user monitoring config get slowlog-log-slower-than | tail -n1'
    )
    on(site, "sed -i 's/^slowlog-log-slower-than .*/slowlog-log-slower-than 77/' /etc/redis/redis.conf")
    on(site, "systemctl restart redis-server")
    assert on(site, slowlog).strip() == "77"
    assert converge(site, "redis").code == 0
    assert on(site, slowlog).strip() == "10000"
