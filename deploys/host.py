"""Debian itself: packages, time, journal, kernel settings, SSH, the operator's account.

pyinfra inventory/production.py deploys/host.py
"""

from pyinfra.api import deploy
from pyinfra.operations import apt, server

from minipc.config import Settings
from minipc.deploying import cluster_server, config
from minipc.operations import Absent, Content, Directory, File, Placed, arm, confirm, install, place, unit

DAY = 86400  # apt-daily.timer refreshes the lists each day: on a living machine this never changes anything
SYSTEMD = "/etc/systemd/system"
SOURCES = "/etc/apt/sources.list.d/debian.sources"
PACKAGES = [
    "ca-certificates",
    "chrony",
    "curl",
    "dbus",
    "iproute2",
    "openssh-server",
    "sudo",
    "unattended-upgrades",
]


@deploy("host")
def host() -> None:
    settings = config()

    # install
    packages(settings)
    account(settings.host.operator_user)

    # configure
    place(
        name="configure the host name",
        component="host",
        entries=[File("hosts.j2", "/etc/hosts")],
        values={"host": settings.host},
    )
    server.hostname(name="set the host name", hostname=settings.host.name)
    server.timezone(name="set the time zone", timezone=settings.host.timezone)
    journal = place(
        name="configure the journal",
        component="host",
        entries=[
            Directory("/var/log/journal", group="systemd-journal", mode="2755"),
            File("journald.conf.j2", "/etc/systemd/journald.conf.d/60-minipc.conf"),
        ],
        values={"host": settings.host},
    )
    kernel = place(
        name="configure the kernel",
        component="host",
        entries=[
            File("sysctl.conf.j2", "/etc/sysctl.d/60-minipc.conf"),
            File("modprobe.conf", "/etc/modprobe.d/60-minipc.conf"),
            File("limits.conf", "/etc/security/limits.d/60-minipc.conf"),
        ],
        values={"host": settings.host},
    )
    address = place(
        name="configure the service address",
        component="host",
        entries=[File("minipc-service-address.service.j2", f"{SYSTEMD}/minipc-service-address.service")],
        values={"host": settings.host, "server": cluster_server()},
    )
    way_back(settings)
    time = place(
        name="configure time",
        component="host",
        entries=[File("chrony.conf", "/etc/chrony/conf.d/60-minipc.conf")],
    )
    ssh = logins(settings)

    # activate
    unit(name="restart the journal", unit="systemd-journald.service", restart_on=[journal])
    unit(name="apply kernel settings", unit="systemd-sysctl.service", restart_on=[kernel])
    unit(name="bring up the service address", unit="minipc-service-address.service", restart_on=[address])
    unit(name="keep time", unit="chrony.service", restart_on=[time])
    unit(name="take back unconfirmed changes at boot", unit="minipc-revert-boot.service")
    arm(name="arm the automatic revert", change="sshd", undo="systemctl reload ssh")
    unit(name="reload SSH", unit="ssh.service", reload_on=[ssh])
    confirm(name="confirm over a new connection", change="sshd", within_s=settings.host.confirm_within_s)
    unit(name="upgrade unattended", unit="apt-daily-upgrade.timer")


def packages(settings: Settings) -> None:
    """Where packages come from, and those that every machine has."""
    entries = [
        File("apt.conf", "/etc/apt/apt.conf.d/90minipc"),
        File("policy-rc.d", "/usr/sbin/policy-rc.d", mode="755", check="sh -n {path}"),
        File("unattended-upgrades.conf.j2", "/etc/apt/apt.conf.d/52minipc-unattended-upgrades"),
    ]
    if settings.host.apt_mirror:
        entries += [File("debian.sources.j2", SOURCES), Absent("/etc/apt/sources.list")]
    place(name="configure apt", component="host", entries=entries, values={"host": settings.host})
    apt.update(name="update package lists", cache_time=4 * DAY)
    install(name="install packages", packages=PACKAGES)


def account(operator: str) -> None:
    """The operator's account; how it logs in is in `logins`."""
    server.group(name="create the operator's group", group=operator)
    server.user(
        name="create the operator's account",
        user=operator,
        group=operator,
        home=f"/home/{operator}",
        shell="/bin/bash",
        create_home=True,
    )


def way_back(settings: Settings) -> None:
    """What takes a change back that locked everybody out: `arm` and `confirm` of every component use it."""
    place(
        name="configure the way back from a lockout",
        component="host",
        entries=[
            File("revert.sh", "/usr/local/lib/minipc/revert", mode="755", check="sh -n {path}"),
            File("minipc-revert@.service", f"{SYSTEMD}/minipc-revert@.service"),
            File("minipc-revert@.timer.j2", f"{SYSTEMD}/minipc-revert@.timer"),
            File("minipc-revert-boot.service", f"{SYSTEMD}/minipc-revert-boot.service"),
        ],
        values={"host": settings.host},
    )


def logins(settings: Settings) -> Placed:
    """SSH, whose keys get in, and who becomes root."""
    keys = "".join(f"{key}\n" for key in settings.host.operator_keys).encode()
    operator = settings.host.operator_user
    home = f"/home/{operator}"
    return place(
        name="configure SSH and who may log in",
        component="host",
        entries=[
            Directory("/root/.ssh", mode="700"),
            Directory(f"{home}/.ssh", owner=operator, mode="700"),
            Content(keys, "/root/.ssh/authorized_keys", mode="600"),
            Content(keys, f"{home}/.ssh/authorized_keys", owner=operator, mode="600"),
            File("sudoers.j2", "/etc/sudoers.d/operator", mode="440", check="visudo -cf {path}"),
            File(
                "sshd.conf.j2",
                "/etc/ssh/sshd_config.d/10-minipc.conf",
                mode="600",
                check="install -d -m 755 /run/sshd && sshd -t -f {path}",
            ),
        ],
        values={"host": settings.host, "firewall": settings.firewall, "vpn": settings.vpn},
        change="sshd",
    )


host()
