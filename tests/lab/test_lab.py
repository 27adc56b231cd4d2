"""Test the lab: machines boot, are isolated from the controller, keep their data, and leave nothing behind."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from minipc.core.errors import MinipcError, RefusedError
from minipc.core.process import call
from minipc.secrets import Secret
from minipc.secrets.generate import wireguard_private_key
from minipc.vpn.keys import public_key
from rehearsal import lab
from rehearsal.lab import Machine, cgroups, tunnel
from rehearsal.lab.network import CONTROLLER_HOST, OPERATOR, PUBLIC, SIDES
from tests.lab.sandbox import Sandbox
from tests.verify.conftest import eventually

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

CONTROLLER_SYSCTLS = ("vm/overcommit_memory", "vm/swappiness", "kernel/panic", "kernel/printk", "fs/file-max")


def unique(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(3)}"


def sh(machine: Machine, line: str, *, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return lab.run(machine, ["sh", "-c", line], check=check, timeout=timeout)


@pytest.fixture(scope="module")
def mini() -> Iterator[Machine]:
    lab.ensure_image()
    with lab.machine(unique("t-mini"), disk_gb=2, memory_mb=512) as machine:
        yield machine


@pytest.fixture(scope="module")
def offsite() -> Iterator[Machine]:
    with lab.machine(unique("t-offsite"), disk_gb=1) as machine:
        yield machine


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    lab.ensure_image()
    with tempfile.TemporaryDirectory(prefix="minipc-lab-", dir="/var/tmp") as directory:  # /tmp may be in memory
        sandbox = Sandbox(Path(directory))
        try:
            yield sandbox
        finally:
            sandbox.close()


# --- a machine behaves like a real one----------------------------------------------------------------------------


def test_it_is_a_booted_debian_13_with_its_own_identity(mini: Machine, offsite: Machine) -> None:
    release = sh(mini, ". /etc/os-release; echo $VERSION_CODENAME; hostname; systemctl is-system-running").stdout
    assert release.split() == ["trixie", mini.name, "running"]
    identities = [sh(machine, "cat /etc/machine-id /etc/ssh/*.pub").stdout.split() for machine in (mini, offsite)]
    assert all(len(identity[0]) == 32 for identity in identities)
    assert identities[0][0] != identities[1][0]
    assert mini.host_key.split()[1] in identities[0]
    assert mini.host_key != offsite.host_key


def test_apt_works(mini: Machine) -> None:
    sh(mini, "apt-get update -qq && apt-get install -y -qq --no-install-recommends netcat-openbsd", timeout=120)
    assert sh(mini, "dpkg-query -W -f='${db:Status-Status}' netcat-openbsd").stdout == "installed"


def test_it_has_its_own_nftables_and_network_settings(mini: Machine) -> None:
    before = Path("/proc/sys/net/ipv4/tcp_syncookies").read_text()
    sh(mini, "nft add table inet minipc_test && sysctl -q -w net.ipv4.tcp_syncookies=2")
    assert sh(mini, "sysctl -n net.ipv4.tcp_syncookies").stdout.strip() == "2"
    assert Path("/proc/sys/net/ipv4/tcp_syncookies").read_text() == before
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True, timeout=20).stdout
    assert "minipc_test" not in tables


def test_a_tunnel_device_can_be_created(mini: Machine) -> None:
    sh(mini, "ip tuntap add dev tun7 mode tun && ip link delete tun7")


def test_a_tunnel_comes_up_again_after_its_process_was_killed(mini: Machine) -> None:
    server = public_key(Secret("vpn.test", wireguard_private_key()))
    name = tunnel.up(mini, which="crash", server_key=server)
    process = mini.directory / f"{name}.pid"
    if process.exists():  # no kernel's WireGuard
        os.kill(int(process.read_text()), signal.SIGKILL)
        assert eventually(lambda: name not in links(), within_s=10)
    assert tunnel.up(mini, which="crash", server_key=server) == name
    assert name in links()
    tunnel.remove_all(mini)
    assert name not in links()
    assert not (tunnel.SOCKETS / f"{name}.sock").exists()


def links() -> str:
    namespaces = (side.name for side in SIDES)
    return "".join(call("ip", "-n", namespace, "-o", "link") for namespace in namespaces)


def test_memory_is_limited(mini: Machine) -> None:
    done = sh(mini, "head -c 700M /dev/zero | tail -c 600M | wc -c", check=False)
    assert done.stdout.strip() != str(600 * 1024**2)
    assert sh(mini, "echo alive").stdout == "alive\n"


# --- the two networks -------------------------------------------------------------------------------------------


def test_machines_reach_each_other_on_both_sides(mini: Machine, offsite: Machine) -> None:
    for address in (offsite.public_ipv4, offsite.public_ipv6, offsite.operator_ipv4, offsite.operator_ipv6):
        sh(mini, f"ping -c 1 -W 5 {address}")


def test_creating_and_removing_a_machine_does_not_disturb_others(mini: Machine, offsite: Machine) -> None:
    """A bridge with a changed address, or a reused IP address with another MAC, would interrupt for half a minute."""
    index = 0
    for _ in range(2):
        with lab.machine(unique("t-passing"), disk_gb=1) as passing:
            index = passing.index
            for address in (passing.public_ipv4, passing.operator_ipv4):
                sh(offsite, f"ping -c 1 -W 2 {address}")
        for side in SIDES:
            sh(mini, f"ping -c 2 -i 0.2 -W 2 {offsite.public_ipv4}; ping -c 1 -W 1 {side.ipv4_of(CONTROLLER_HOST)}")
    assert index != mini.index


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_each_client_namespace_reaches_its_side_and_nothing_else(mini: Machine, side: object) -> None:
    name = side.name  # type: ignore[attr-defined]
    own = {"public": (mini.public_ipv4, mini.public_ipv6), "operator": (mini.operator_ipv4, mini.operator_ipv6)}

    def connects(address: str) -> bool:
        attempt = ["timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{address}/22"]
        return subprocess.run(["ip", "netns", "exec", name, *attempt], capture_output=True, timeout=20).returncode == 0

    for other, addresses in own.items():
        for address in addresses:
            assert connects(address) == (other == name), address
    shown = subprocess.run(["ip", "-n", name, "route"], capture_output=True, text=True, check=True, timeout=20).stdout
    # Another machine that is up may have its VPN's client in here.
    routes = [line for line in shown.splitlines() if not re.search(r" dev lab\d+-vpn ", line)]
    assert len(routes) == 1
    assert "default" not in shown


@pytest.fixture
def controller_service() -> Iterator[int]:
    """Run a TCP service on every address of the controller. Yields its port."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        threading.Thread(target=_accept_all, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


def _accept_all(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return


def test_nothing_in_the_lab_can_connect_to_the_controller(mini: Machine, controller_service: int) -> None:
    socket.create_connection(("127.0.0.1", controller_service), timeout=5).close()
    own = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True, timeout=20).stdout.split()
    gateways = [side.ipv4_of(CONTROLLER_HOST) for side in SIDES] + [side.ipv6_of(CONTROLLER_HOST) for side in SIDES]
    bash = "exec 3<>/dev/tcp/{}/{}"
    for address in {*own, *gateways}:
        attempt = bash.format(address, controller_service)
        assert lab.run(mini, ["timeout", "3", "bash", "-c", attempt], check=False).returncode != 0, address
    for side in SIDES:
        attempt = bash.format(side.ipv4_of(CONTROLLER_HOST), controller_service)
        command = ["ip", "netns", "exec", side.name, "timeout", "3", "bash", "-c", attempt]
        assert subprocess.run(command, capture_output=True, timeout=20).returncode != 0


# --- host keys are pinned ----------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused(offsite: Machine) -> None:
    program, *arguments = lab.ssh_command(offsite, "true")
    options = ["-o", "UserKnownHostsFile=/dev/null", "-o", "ControlPath=none"]
    done = subprocess.run([program, *options, *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_a_changed_host_key_is_refused(offsite: Machine) -> None:
    key = "/etc/ssh/ssh_host_ed25519_key"
    swap = f"mv {key} {key}.pinned; ssh-keygen -q -t ed25519 -N '' -f {key} </dev/null; systemctl restart ssh"
    back = f"mv {key}.pinned {key}; systemctl restart ssh"
    program, *arguments = lab.ssh_command(offsite, "true")
    sh(offsite, swap)
    try:
        done = subprocess.run(
            [program, "-o", "ControlPath=none", *arguments], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 255
        assert "IDENTIFICATION HAS CHANGED" in done.stderr
    finally:
        sh(offsite, back)  # over the connection that is still open


# --- a machine cannot change the controller ---------------------------------------------------------------------


def test_the_clock_cannot_be_set(mini: Machine) -> None:
    difference = time.time() - time.monotonic()
    assert sh(mini, "date -s 2020-01-01", check=False).returncode != 0
    assert sh(mini, "timedatectl set-time 2020-01-01", check=False).returncode != 0
    assert abs(time.time() - time.monotonic() - difference) < 5


def test_sysctls_cannot_be_set_by_any_path(mini: Machine) -> None:
    before = {name: Path("/proc/sys", name).read_text() for name in CONTROLLER_SYSCTLS}
    sh(mini, "mkdir -p /tmp/proc && mount -t proc proc /tmp/proc && mount -o remount,rw,bind /proc/sys || true")
    for name in CONTROLLER_SYSCTLS:
        assert sh(mini, f"sysctl -w {name.replace('/', '.')}=1", check=False).returncode != 0
        assert sh(mini, f"echo 1 > /tmp/proc/sys/{name}", check=False).returncode != 0
    assert {name: Path("/proc/sys", name).read_text() for name in CONTROLLER_SYSCTLS} == before


def test_other_kernel_settings_cannot_be_changed(mini: Machine) -> None:
    files = ("/sys/kernel/mm/ksm/run", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/sysrq-trigger")
    sh(mini, "mkdir -p /tmp/sys && mount -t sysfs sysfs /tmp/sys || true")
    for path in files:
        assert sh(mini, f"echo 0 > {path}", check=False).returncode != 0
    assert sh(mini, "echo 0 > /tmp/sys/kernel/mm/ksm/run", check=False).returncode != 0


def test_audit_is_not_accessible(mini: Machine) -> None:
    netlink_audit = "use Socket; socket(my $s, 16, SOCK_RAW, 9) or exit 1"  # AF_NETLINK, NETLINK_AUDIT
    assert lab.run(mini, ["perl", "-e", netlink_audit], check=False).returncode == 1


def test_the_kernel_log_is_not_accessible(mini: Machine) -> None:
    assert sh(mini, "dmesg", check=False).returncode != 0
    assert sh(mini, "test -e /dev/kmsg", check=False).returncode != 0
    assert sh(mini, "timeout 1 head -c 1 /proc/kmsg", check=False).stdout == ""


def test_the_controllers_devices_are_not_accessible(mini: Machine) -> None:
    for device in ("b 254 0", "b 8 0", "b 7 0", "c 1 1", "c 1 11"):
        assert sh(mini, f"rm -f /root/dev; mknod /root/dev {device} && head -c 1 /root/dev", check=False).returncode
    assert sh(mini, "mkdir -p /root/d && mount -t devtmpfs devtmpfs /root/d", check=False).returncode != 0
    blocks = sh(mini, "find /dev -type b").stdout
    assert blocks == ""


def test_the_controllers_files_and_processes_are_not_accessible(mini: Machine) -> None:
    assert sh(mini, "cat /proc/1/comm").stdout.strip() == "systemd"
    visible = [int(name) for name in sh(mini, "ls /proc").stdout.split() if name.isdigit()]
    assert len(visible) < len([name for name in os.listdir("/proc") if name.isdigit()])
    owners = {
        int((Path("/proc") / pid / "status").read_text().split("\nUid:")[1].split()[0])
        for hierarchy in cgroups.hierarchies()
        for procs in (hierarchy / cgroups.PARENT / mini.name / "boot").rglob("cgroup.procs")
        for pid in procs.read_text().split()
        if (Path("/proc") / pid / "comm").read_text() in ("systemd\n", "sshd\n", "dbus-daemon\n")
    }
    assert owners
    assert min(owners) >= 0x60000000


def test_a_full_disk_does_not_fill_the_controllers(offsite: Machine) -> None:
    free = shutil.disk_usage(offsite.directory).free
    done = sh(offsite, "head -c 2G /dev/zero > /root/fill", check=False, timeout=120)
    assert "No space left on device" in done.stderr
    assert free - shutil.disk_usage(offsite.directory).free < 1.5 * 1024**3
    assert lab.run(offsite, ["rm", "/root/fill"]).returncode == 0
    sh(offsite, "echo works > /root/again && grep works /root/again")


def test_a_disk_that_could_fill_the_controllers_is_refused() -> None:
    total_gb = shutil.disk_usage("/").total // 1024**3
    name = unique("t-huge")
    with pytest.raises(RefusedError, match="smaller disk"):
        lab.up(name, disk_gb=total_gb + 10)
    assert lab.find(name) is None


def test_a_machine_for_k3s_runs_containers_and_stays_isolated() -> None:
    before = {name: Path("/proc/sys", name).read_text() for name in CONTROLLER_SYSCTLS}
    with lab.machine(unique("t-k3s"), disk_gb=2, k3s=True) as machine:
        assert sh(machine, "systemctl is-system-running").stdout == "running\n"
        hungry = "systemd-run --quiet --wait -p MemoryMax={} sh -c 'head -c 100M /dev/zero | tail'"
        assert sh(machine, hungry.format("300M"), check=False).returncode == 0
        assert sh(machine, hungry.format("20M"), check=False).returncode != 0
        assert sh(machine, "findmnt -n -o PROPAGATION /").stdout == "shared\n"
        overlay = "cd /var/lib/rancher && mkdir l u w m && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m"
        sh(machine, f"{overlay} && touch m/file && test -e u/file")
        sh(machine, "echo x > /dev/kmsg")
        sh(machine, "sysctl -w vm.overcommit_memory=1 kernel.panic=10", check=False)
        sh(machine, "mount -t proc p /mnt && echo 1 > /mnt/sys/vm/swappiness", check=False)
        assert sh(machine, "date -s 2020-01-01", check=False).returncode != 0
        assert sh(machine, "mknod /root/dev b 254 0", check=False).returncode != 0
        lab.reboot(machine)
        assert sh(machine, "test -e /var/lib/rancher/u/file && systemctl is-system-running").stdout == "running\n"
    assert {name: Path("/proc/sys", name).read_text() for name in CONTROLLER_SYSCTLS} == before


# --- power ------------------------------------------------------------------------------------------------------


def test_a_reboot_keeps_data_addresses_and_identity_only(mini: Machine) -> None:
    look = "cat /etc/machine-id; ip -br -4 address show public0; ip -br -6 address show scope global dev operator0"
    sh(mini, "echo kept > /root/file; echo lost > /run/file; nft add table inet lost")
    before = sh(mini, look).stdout
    lab.reboot(mini)
    after = sh(mini, look).stdout
    assert [line.split()[-1] for line in after.splitlines()] == [line.split()[-1] for line in before.splitlines()]
    assert sh(mini, "cat /root/file").stdout == "kept\n"
    assert sh(mini, "test -e /run/file", check=False).returncode != 0
    assert sh(mini, "nft list tables").stdout == ""


def test_power_loss_keeps_the_disk(mini: Machine) -> None:
    sh(mini, "echo written > /root/before-power-loss; sync /root/before-power-loss")
    lab.power_off(mini)
    assert not mini.running
    with pytest.raises(MinipcError):
        sh(mini, "true")
    lab.start(mini)
    assert sh(mini, "cat /root/before-power-loss").stdout == "written\n"


# --- caches -----------------------------------------------------------------------------------------------------


def test_a_second_machine_reuses_the_image_and_the_packages(sandbox: Sandbox) -> None:
    image = lab.ensure_image()
    built = image.stat().st_ino, image.stat().st_ctime_ns
    package = "var/cache/apt/archives/minipc-test_1_all.deb"
    sandbox.run(f"""if True:
        from rehearsal import lab
        from rehearsal.lab.debs import cache_dir
        with lab.machine("one", disk_gb=1) as one:
            lab.run(one, ["sh", "-c", "echo package > /{package}"])
        with lab.machine("two", disk_gb=1) as two:
            assert lab.run(two, ["cat", "/{package}"]).stdout == "package\\n"
            assert two.image == {str(image)!r}
        next(cache_dir("debs").glob("minipc-test_*")).unlink()
    """)
    assert (image.stat().st_ino, image.stat().st_ctime_ns) == built


# --- the lab leaves nothing behind -----------------------------------------------------------------------------------

TWO_MACHINES = """if True:
    import subprocess, sys, time
    from subprocess import DEVNULL
    from rehearsal import lab
    for name in ("one", "two"):
        lab.run(lab.up(name, disk_gb=1, keep={keep}), ["true"])
    subprocess.Popen(["ip", "netns", "exec", "public", "sleep", "600"], stdout=DEVNULL, stderr=DEVNULL)
    print("up", flush=True)
    {then}
"""


def test_down_leaves_nothing(sandbox: Sandbox) -> None:
    clean = sandbox.leftovers()
    sandbox.run(TWO_MACHINES.format(keep=False, then="lab.down(['one', 'two'])"))
    assert sandbox.wait_until_clean(clean, timeout=2) == clean


def test_the_end_of_the_owner_without_down_leaves_nothing(sandbox: Sandbox) -> None:
    clean = sandbox.leftovers()
    sandbox.run(TWO_MACHINES.format(keep=False, then="sys.exit(0)"))
    assert sandbox.wait_until_clean(clean) == clean


def test_kill_9_of_the_owner_leaves_nothing(sandbox: Sandbox) -> None:
    clean = sandbox.leftovers()
    owner = sandbox.start(TWO_MACHINES.format(keep=False, then="time.sleep(600)"))
    assert owner.stdout
    assert owner.stdout.readline() == "up\n"
    assert len(sandbox.leftovers()["disks"]) == 2
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert sandbox.wait_until_clean(clean) == clean


@pytest.mark.parametrize("seconds", [0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.2])
def test_kill_9_while_a_machine_comes_up_leaves_nothing(sandbox: Sandbox, seconds: float) -> None:
    clean = sandbox.leftovers()
    owner = sandbox.start(TWO_MACHINES.format(keep=False, then="time.sleep(600)"))
    time.sleep(seconds)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert sandbox.wait_until_clean(clean) == clean


def test_down_all_removes_leftovers_if_the_reaper_was_killed_too(sandbox: Sandbox) -> None:
    clean = sandbox.leftovers()
    owner = sandbox.start(TWO_MACHINES.format(keep=False, then="time.sleep(600)"))
    assert owner.stdout
    assert owner.stdout.readline() == "up\n"
    reapers = subprocess.run(["pgrep", "-f", f"rehearsal.lab.reaper {owner.pid} "], capture_output=True, text=True)
    os.kill(int(reapers.stdout), signal.SIGKILL)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    left = sandbox.leftovers()
    assert len(left["disks"]) == 2
    assert left["namespaces"] == ["operator", "public"]
    (sandbox.state / "lab" / "machines" / "two" / "machine.json").unlink()  # its state is lost, too
    sandbox.run("from rehearsal import lab; lab.down('all'); lab.down('all')")
    assert sandbox.wait_until_clean(clean, timeout=2) == clean


def test_kept_machines_stay_until_down(sandbox: Sandbox) -> None:
    clean = sandbox.leftovers()
    sandbox.run(TWO_MACHINES.format(keep=True, then=""))
    time.sleep(1)
    listed = sandbox.run("from rehearsal import lab; print([(m.name, m.running) for m in lab.list_machines()])")
    assert listed == "[('one', True), ('two', True)]\n"
    sandbox.run("from rehearsal import lab; assert lab.down('one') == ['one']")
    assert sandbox.leftovers()["namespaces"] == ["operator", "public"]
    sandbox.run("from rehearsal import lab; assert lab.down('all') == ['two']")
    assert sandbox.wait_until_clean(clean, timeout=2) == clean


def test_forwarding_stays_on_if_it_was_on(sandbox: Sandbox) -> None:
    sandbox.run("open('/proc/sys/net/ipv4/ip_forward', 'w').write('1')")
    sandbox.run(TWO_MACHINES.format(keep=False, then="lab.down(['one', 'two'])"))
    assert sandbox.leftovers()["forwarding"][0] == "1"


# --- bad input --------------------------------------------------------------------------------------------------


def test_a_name_cannot_be_used_twice(mini: Machine) -> None:
    with pytest.raises(RefusedError, match="already a machine"):
        lab.up(mini.name)
    assert sh(mini, "echo alive").stdout == "alive\n"


def test_an_existing_namespace_or_network_is_refused(sandbox: Sandbox) -> None:
    refused = """if True:
        import subprocess
        from rehearsal import lab
        from minipc.core.errors import RefusedError
        subprocess.run({make}, check=True)
        try:
            lab.up("one", disk_gb=1)
        except RefusedError as error:
            print(error)
        subprocess.run({undo}, check=True)
    """
    namespace = refused.format(make="['ip', 'netns', 'add', 'public']", undo="['ip', 'netns', 'delete', 'public']")
    assert "namespace named 'public'" in sandbox.run(namespace)
    address = f"['ip', 'address', '{{}}', '{OPERATOR.ipv4_of(77)}/32', 'dev', 'lo']"
    route = f"['ip', 'route', '{{}}', '{PUBLIC.ipv4}', 'dev', 'lo']"
    assert "overlaps" in sandbox.run(refused.format(make=route.format("add"), undo=route.format("delete")))
    assert "overlaps" in sandbox.run(refused.format(make=address.format("add"), undo=address.format("delete")))


def test_a_second_lab_on_the_same_controller_is_refused(mini: Machine, tmp_path: Path) -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from rehearsal import lab; lab.down('all')"],
        env={**os.environ, "MINIPC_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "already runs a lab" in other.stderr
    assert sh(mini, "echo alive").stdout == "alive\n"


def test_a_machine_that_does_not_boot_shows_its_console_and_is_removed(sandbox: Sandbox) -> None:
    clean = sandbox.leftovers()
    output = sandbox.run("""if True:
        from rehearsal import lab
        from minipc.core.errors import MinipcError
        from rehearsal.lab import nspawn
        nspawn.make_disk = lambda machine: machine.disk.write_bytes(b"not a file system")
        try:
            lab.up("one", disk_gb=1)
        except MinipcError as error:
            print(error)
    """)
    assert "did not answer SSH" in output
    assert "mount" in output
    assert sandbox.wait_until_clean(clean, timeout=2) == clean
