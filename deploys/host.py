"""Host: Debian packages, time, journal, kernel settings, SSH and the operator's account.

pyinfra inventory/production.py deploys/host.py
"""

from pyinfra.api import deploy
from pyinfra.operations import apt, server, systemd

from minipc.config import Settings
from minipc.pyinfra_ext.deploying import cluster_server, config, role
from minipc.pyinfra_ext.operations import (
    Absent,
    Content,
    Directory,
    File,
    Placed,
    arm,
    confirm,
    install,
    install_announced,
    place,
    shell_program,
    unit,
)

DAY = 86400  # apt-daily.timer refreshes the lists every day, so on a running machine this changes nothing
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
    if role() == "mini":
        accounts_of_services()

    # configure
    place(
        name="Configure the host name",
        component="host",
        entries=[File("hosts.j2", "/etc/hosts")],
        values={"host": settings.host},
    )
    server.hostname(name="Set the host name", hostname=settings.host.name)
    server.timezone(name="Set the time zone", timezone=settings.host.timezone)
    place(
        name="Remove the uploads of interrupted converges at boot and after a day",
        component="host",
        entries=[File("tmpfiles.conf", "/etc/tmpfiles.d/60-minipc.conf")],
    )
    journal = place(
        name="Configure the journal",
        component="host",
        entries=[
            Directory("/var/log/journal", group="systemd-journal", mode="2755"),
            File("journald.conf.j2", "/etc/systemd/journald.conf.d/60-minipc.conf"),
        ],
        values={"host": settings.host},
    )
    kernel = place(
        name="Configure kernel settings",
        component="host",
        entries=[
            File("sysctl.conf.j2", "/etc/sysctl.d/60-minipc.conf"),
            File("modprobe.conf", "/etc/modprobe.d/60-minipc.conf"),
            File("limits.conf", "/etc/security/limits.d/60-minipc.conf"),
        ],
        values={"host": settings.host},
    )
    address = place(
        name="Configure the service address",
        component="host",
        entries=[File("minipc-service-address.service.j2", f"{SYSTEMD}/minipc-service-address.service")],
        values={"host": settings.host, "server": cluster_server()},
    )
    rollback(settings)
    time = place(
        name="Configure time synchronisation",
        component="host",
        entries=[File("chrony.conf", "/etc/chrony/conf.d/60-minipc.conf")],
    )

    # activate
    unit(name="Restart the journal", unit="systemd-journald.service", restart_on=[journal])
    unit(name="Apply kernel settings", unit="systemd-sysctl.service", restart_on=[kernel])
    unit(name="Add the service address", unit="minipc-service-address.service", restart_on=[address])
    unit(name="Enable chrony", unit="chrony.service", restart_on=[time])
    unit(name="Enable the rollback of unconfirmed changes at boot", unit="minipc-revert-boot.service")
    # Configured last: authorised keys and sudo rules take effect at once, not with the reload.
    ssh = logins(settings)
    arm(name="Arm the rollback of SSH settings", change="sshd", undo="systemctl reload ssh")
    unit(name="Reload SSH", unit="ssh.service", reload_on=[ssh])
    confirm(name="Confirm SSH settings over a new connection", change="sshd", within_s=settings.host.confirm_within_s)
    unit(name="Enable unattended upgrades", unit="apt-daily-upgrade.timer")
    reboots(settings)


def reboots(settings: Settings) -> None:
    """Have reboots for updates wait for backup, restore and drill, and upgrades wait for the end of a rebuild."""
    service, timer = f"{SYSTEMD}/minipc-reboot.service", f"{SYSTEMD}/minipc-reboot.timer"
    entries = [File("apt-daily-upgrade.conf", f"{SYSTEMD}/apt-daily-upgrade.service.d/minipc.conf")]
    if settings.host.reboot_at:
        entries += [File("minipc-reboot.service", service), File("minipc-reboot.timer.j2", timer)]
    else:
        systemd.service(name="Disable reboots for updates", service="minipc-reboot.timer", running=False, enabled=False)
        entries += [Absent(service), Absent(timer)]
    placed = place(
        name="Configure reboots for updates", component="host", entries=entries, values={"host": settings.host}
    )
    if settings.host.reboot_at:
        unit(name="Enable reboots for updates", unit="minipc-reboot.timer", restart_on=[placed])


def packages(settings: Settings) -> None:
    """Configure apt and install the packages that every machine has."""
    entries = [
        File("apt.conf", "/etc/apt/apt.conf.d/90minipc"),
        File("policy-rc.d", "/usr/sbin/policy-rc.d", mode="755", check="sh -n {path}"),
        File("unattended-upgrades.conf.j2", "/etc/apt/apt.conf.d/52minipc-unattended-upgrades"),
    ]
    if settings.host.apt_mirror:
        entries += [File("debian.sources.j2", SOURCES), Absent("/etc/apt/sources.list")]
    place(name="Configure apt", component="host", entries=entries, values={"host": settings.host})
    apt.update(name="Update package lists", cache_time=4 * DAY)
    # One call of apt instead of one for each component; their own `install` then finds the packages there.
    install_announced(name="Install the packages of all components of this run")
    install(name="Install base packages", packages=PACKAGES)


def account(operator: str) -> None:
    """Create the operator's account. `logins` configures how it logs in."""
    server.group(name="Create the operator group", group=operator)
    server.user(
        name="Create the operator account",
        user=operator,
        group=operator,
        home=f"/home/{operator}",
        shell="/bin/bash",
        create_home=True,
    )


def accounts_of_services() -> None:
    """Create the accounts that the firewall names; the packages of Caddy and Prometheus keep theirs if they exist."""
    for name in ("caddy", "grafana", "loki", "prometheus", "syslog-ng"):
        server.user(
            name=f"Create the account {name}",
            user=name,
            system=True,
            home=f"/var/lib/{name}",
            ensure_home=False,
            shell="/usr/sbin/nologin",
        )


def rollback(settings: Settings) -> None:
    """Install the rollback that reverts a change which locked everybody out. `arm` and `confirm` use it."""
    place(
        name="Configure the rollback of unconfirmed changes",
        component="host",
        entries=[
            shell_program("revert.sh", "/usr/local/lib/minipc/revert"),
            File("minipc-revert@.service", f"{SYSTEMD}/minipc-revert@.service"),
            File("minipc-revert@.timer.j2", f"{SYSTEMD}/minipc-revert@.timer"),
            File("minipc-revert-boot.service", f"{SYSTEMD}/minipc-revert-boot.service"),
        ],
        values={"host": settings.host},
    )


def logins(settings: Settings) -> Placed:
    """Configure SSH, authorised keys and sudo; return the files that need a reload of SSH."""
    keys = "".join(f"{key}\n" for key in settings.host.operator_keys).encode()
    operator = settings.host.operator_user
    home = f"/home/{operator}"
    return place(
        name="Configure SSH and logins",
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
