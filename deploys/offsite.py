"""The backups' home on another machine: SFTP for pgBackRest, an append-only restic server, copies out of reach.

pyinfra --limit offsite inventory/production.py deploys/offsite.py
"""

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.operations import git, server

from minipc import keys
from minipc.config import Settings
from minipc.deploy_repository import ACCOUNT, BRANCH, PATH
from minipc.deploy_repository import HOME as DEPLOY_HOME
from minipc.deploying import belongs_here, config, secrets
from minipc.guards import refuse_replaced_key
from minipc.operations import Content, Directory, File, Placed, SecretFile, install, place, unit
from minipc.secrets import Secret
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
    install(name="install packages", packages=["openssh-server", "python3", "restic", "restic-rest-server", "rsync"])
    server.user(
        name="create the account",
        user="minipc-sftp",
        system=True,
        # No password, but not locked either: sshd takes no key for a locked account.
        password="*",  # noqa: S106
        home="/",
        ensure_home=False,
        shell="/usr/sbin/nologin",
    )

    if settings.offsite.deploy_repository:
        deploy_repository()

    # configure
    place(
        name="make the directories",
        component="offsite",
        entries=[
            Directory(HOME),
            # The root of its file system: nothing in it but its repository can be the account's.
            Directory(f"{HOME}/sftp"),
            Directory(f"{HOME}/sftp/pgbackrest", owner="minipc-sftp", mode="700"),
            Directory(f"{HOME}/restic", owner="restic-rest-server", mode="700"),
            Directory(f"{HOME}/copies", mode="700"),
        ],
    )
    sftp = sftp_server(settings, found)
    rest = restic_server(settings, found)
    copies = place(
        name="configure the copies",
        component="offsite",
        entries=[
            File("offsite_copy.py", f"{BIN}/offsite-copy", mode="755"),
            File("offsite-restore-copy.sh", f"{BIN}/offsite-restore-copy", mode="755", check="sh -n {path}"),
            File("minipc-offsite-copy.service.j2", f"{SYSTEMD}/minipc-offsite-copy.service"),
            File("minipc-offsite-copy.timer.j2", f"{SYSTEMD}/minipc-offsite-copy.timer"),
        ],
        values={"offsite": settings.offsite, "repo2_days": settings.backups.repo2_days},
    )

    # activate
    unit(name="serve SFTP", unit="minipc-sftp.service", restart_on=sftp)
    unit(name="serve restic", unit="restic-rest-server.service", restart_on=[rest])
    unit(name="take copies", unit="minipc-offsite-copy.timer", restart_on=[copies])


def deploy_repository() -> None:
    """The bare repository that says what should run: root's to write, ArgoCD's to read through one command."""
    found = secrets({"key": ARGOCD_DEPLOY_KEY})
    install(name="install git", packages=["git"])
    server.user(
        name="create the reader's account",
        user=ACCOUNT,
        system=True,
        password="*",  # noqa: S106 - none, but not locked
        home="/",
        ensure_home=False,
        shell="/usr/bin/git-shell",
    )
    place(
        name="let ArgoCD read the deploy repository",
        component="offsite",
        entries=[
            Directory(ETC),
            Directory(DEPLOY_HOME),
            Content(f"restrict {keys.public_key(found['key'])} ArgoCD\n".encode(), f"{ETC}/deploy_keys"),
            # git refuses the repository of somebody else unless told.
            Content(f"[safe]\n\tdirectory = {PATH}\n[init]\n\tdefaultBranch = {BRANCH}\n".encode(), "/etc/gitconfig"),
        ],
    )
    git.bare_repo(name="create the deploy repository", path=PATH)


def sftp_server(settings: Settings, found: dict[str, Secret]) -> list[Placed]:
    """An SSH server of its own for pgBackRest, apart from the operator's."""
    own = keys.public_key(found["sftp"])
    gone = refuse_replaced_key(own, AUTHORIZED, REPLACED)
    known = place(
        name="place the keys of the SFTP server",
        component="offsite",
        entries=[
            Directory(ETC),
            SecretFile("", f"{ETC}/host_key", content=found["host"].reveal().encode()),
            # Before the new one: a computer that still has an old key is refused.
            Content("".join(f"{key}\n" for key in gone).encode(), REPLACED),
            # The only key that gets in: deploying a new one locks the machine with the old one out.
            Content(f"restrict {own} mini PC\n".encode(), AUTHORIZED),
        ],
    )
    configured = place(
        name="configure the SFTP server",
        component="offsite",
        entries=[
            File("sshd_config.j2", f"{ETC}/sshd_config", check="install -d -m 755 /run/sshd && sshd -t -f {path}"),
            File("minipc-sftp.service", f"{SYSTEMD}/minipc-sftp.service"),
        ],
        values={"offsite": settings.offsite, "git_account": ACCOUNT, "repository": PATH},
    )
    return [known, configured]


def restic_server(settings: Settings, found: dict[str, Secret]) -> Placed:
    """Takes the mini PC's snapshots; none can be removed through it."""
    address = settings.offsite.address or host.data.ssh_hostname
    return place(
        name="configure the restic server",
        component="offsite",
        entries=[
            Content(keys.certificate(found["tls"], address).encode(), f"{ETC}/tls.crt"),
            SecretFile(
                "", f"{ETC}/tls.key", group="restic-rest-server", mode="640", content=keys.pem(found["tls"]).encode()
            ),
            SecretFile(
                "",
                f"{ETC}/htpasswd",
                group="restic-rest-server",
                mode="640",
                content=f"minipc:{keys.htpasswd(found['rest'])}\n".encode(),
            ),
            File("restic-rest-server.conf.j2", f"{SYSTEMD}/restic-rest-server.service.d/minipc.conf"),
        ],
        values={"offsite": settings.offsite},
    )


if belongs_here("offsite"):
    offsite()
