"""Off-site host: SFTP for pgBackRest, an append-only restic server, and copies that the mini PC can't reach.

pyinfra --limit offsite inventory/production.py deploys/offsite.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import git, server

from minipc.config import Settings
from minipc.gitops.hosted_repository import ACCOUNT, BRANCH, PATH
from minipc.gitops.hosted_repository import HOME as DEPLOY_HOME
from minipc.pyinfra_ext.deploying import belongs_here, config, secrets
from minipc.pyinfra_ext.guards import refuse_replaced_key
from minipc.pyinfra_ext.operations import (
    Content,
    Directory,
    File,
    Placed,
    SecretFile,
    install,
    place,
    programs,
    shell_program,
    unit,
)
from minipc.secrets import Secret, ed25519
from minipc.secrets.catalogue import ARGOCD_DEPLOY_KEY, REST_PASSWORD, SFTP_HOST_KEY, SFTP_KEY, TLS_KEY

HOME = "/srv/minipc-offsite"
ETC = "/etc/minipc/offsite"
AUTHORIZED = f"{ETC}/authorized_keys"
REPLACED = f"{ETC}/replaced_keys"
BIN = "/usr/local/lib/minipc"
SYSTEMD = "/etc/systemd/system"


@deploy("offsite")
def offsite() -> None:
    settings = config()
    found = secrets({"sftp": SFTP_KEY, "host": SFTP_HOST_KEY, "tls": TLS_KEY, "rest": REST_PASSWORD})

    # install
    install(
        name="Install the packages of the off-site host",
        packages=["openssh-server", "python3", "restic", "restic-rest-server", "rsync"],
    )
    server.user(
        name="Create the account of the SFTP server",
        user="minipc-sftp",
        system=True,
        # No password, but not locked either: sshd accepts no key for a locked account.
        password="*",  # noqa: S106
        home="/",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )

    if settings.offsite.deploy_repository:
        deploy_repository()

    # configure
    place(
        name="Create the directories of the backups",
        component="offsite",
        entries=[
            Directory(HOME),
            # The account is confined here (ChrootDirectory), so it may own nothing but these two.
            Directory(f"{HOME}/sftp"),
            Directory(f"{HOME}/sftp/pgbackrest", owner="minipc-sftp", mode="700"),
            Directory(f"{HOME}/sftp/wal", owner="minipc-sftp", mode="700"),
            Directory(f"{HOME}/restic", owner="restic-rest-server", mode="700"),
            Directory(f"{HOME}/copies", mode="700"),
            Directory("/var/lib/prometheus/node-exporter"),
        ],
    )
    sftp = sftp_server(settings, found)
    rest = restic_server(settings, found)
    copies = programs(
        name="Install the off-site copy and its timer",
        component="offsite",
        programs=["offsite-copy"],
        entries=[
            shell_program("offsite-restore-copy.sh", f"{BIN}/offsite-restore-copy"),
            File("minipc-offsite-copy.service.j2", f"{SYSTEMD}/minipc-offsite-copy.service"),
            File("minipc-offsite-copy.timer.j2", f"{SYSTEMD}/minipc-offsite-copy.timer"),
        ],
        values={"offsite": settings.offsite, "repo2_days": settings.backups.repo2_days},
    )

    # activate
    unit(name="Start the SFTP server", unit="minipc-sftp.service", restart_on=sftp)
    unit(name="Start the restic server", unit="restic-rest-server.service", restart_on=[rest])
    unit(name="Enable the timer of the copies", unit="minipc-offsite-copy.timer", restart_on=[copies])


def deploy_repository() -> None:
    """Create the bare repository with the desired state: only root writes it, ArgoCD reads it through one command."""
    found = secrets({"key": ARGOCD_DEPLOY_KEY})
    install(name="Install Git", packages=["git"])
    server.user(
        name="Create the account that reads the deploy repository",
        user=ACCOUNT,
        system=True,
        password="*",  # noqa: S106 - none, but not locked
        home="/",
        ensure_home=False,
        shell="/usr/bin/git-shell",
    )
    place(
        name="Authorise ArgoCD to read the deploy repository",
        component="offsite",
        entries=[
            Directory(ETC),
            Directory(DEPLOY_HOME),
            Content(f"restrict {ed25519.public_key(found['key'])} ArgoCD\n".encode(), f"{ETC}/deploy_keys"),
            # Git refuses the repository of another account unless it is listed here.
            Content(f"[safe]\n\tdirectory = {PATH}\n[init]\n\tdefaultBranch = {BRANCH}\n".encode(), "/etc/gitconfig"),
        ],
    )
    git.bare_repo(name="Create the deploy repository", path=PATH)


def sftp_server(settings: Settings, found: dict[str, Secret]) -> list[Placed]:
    """Configure a second SSH server for pgBackRest, separate from the operator's."""
    own = ed25519.public_key(found["sftp"])
    gone = refuse_replaced_key(own, AUTHORIZED, REPLACED)
    known = place(
        name="Place the keys of the SFTP server",
        component="offsite",
        entries=[
            Directory(ETC),
            SecretFile("", f"{ETC}/host_key", content=found["host"].reveal().encode()),
            # Before the new one: a controller that still has an old key is refused.
            Content("".join(f"{key}\n" for key in gone).encode(), REPLACED),
            # The only authorised key: deploying a new one locks out the machine with the old one.
            Content(f"restrict {own} mini PC\n".encode(), AUTHORIZED),
        ],
    )
    configured = place(
        name="Configure the SFTP server",
        component="offsite",
        entries=[
            File("sshd_config.j2", f"{ETC}/sshd_config", check="install -d -m 755 /run/sshd && sshd -t -f {path}"),
            File("minipc-sftp.service", f"{SYSTEMD}/minipc-sftp.service"),
        ],
        values={"offsite": settings.offsite, "git_account": ACCOUNT, "repository": PATH},
    )
    return [known, configured]


def restic_server(settings: Settings, found: dict[str, Secret]) -> Placed:
    """Configure the server for the mini PC's snapshots; it does not allow removing any."""
    address = settings.offsite.address or host.data.ssh_hostname
    return place(
        name="Configure the restic server",
        component="offsite",
        entries=[
            Content(ed25519.certificate(found["tls"], address).encode(), f"{ETC}/tls.crt"),
            SecretFile(
                "", f"{ETC}/tls.key", group="restic-rest-server", mode="640", content=ed25519.pem(found["tls"]).encode()
            ),
            SecretFile(
                "",
                f"{ETC}/htpasswd",
                group="restic-rest-server",
                mode="640",
                content=f"minipc:{ed25519.htpasswd(found['rest'])}\n".encode(),
            ),
            File("restic-rest-server.conf.j2", f"{SYSTEMD}/restic-rest-server.service.d/minipc.conf"),
        ],
        values={"offsite": settings.offsite},
    )


if belongs_here("offsite"):
    offsite()
