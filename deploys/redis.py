"""Redis: the cache, which forgets, and a queue for each service that declares one, which does not.

pyinfra inventory/production.py deploys/redis.py
"""

from pyinfra.api import deploy

from minipc.config import Settings
from minipc.config.offsite import NONE as NO_OFFSITE
from minipc.config.services import MONITORING
from minipc.pyinfra_ext.deploying import belongs_here, config, not_exercised, secrets
from minipc.pyinfra_ext.operations import Directory, File, SecretFile, install, place, programs, unit
from minipc.pyinfra_ext.operations.redis import queues_removed, queues_restored
from minipc.secrets import Secret
from minipc.services.queues import FOLDER, Queue, queues
from minipc_machine import schema
from minipc_machine.redis_alive import SETTINGS, AliveSettings, Instance

OWNER = {"owner": "redis", "mode": "640"}
SYSTEMD = "/etc/systemd/system"


@deploy("redis")
def redis() -> None:
    settings = config()
    passwords = secrets({user.name: f"redis.password.{user.name}" for user in settings.redis.users})

    # install
    install(name="Install Redis", packages=["redis-server"])

    # configure
    files = place(
        name="Configure Redis",
        component="redis",
        entries=[
            Directory("/etc/redis", owner="redis", mode="2770"),
            File("redis.conf.j2", "/etc/redis/redis.conf", **OWNER),
            SecretFile("users.acl.j2", "/etc/redis/users.acl", **OWNER),
            File("override.conf", f"{SYSTEMD}/redis-server.service.d/minipc.conf"),
        ],
        values={"redis": settings.redis, "host": settings.host, "passwords": passwords},
    )

    # activate
    unit(name="Start Redis", unit="redis-server.service", restart_on=[files])
    found = queues(settings)
    queues_removed(name="Stop queues of services that are gone", kept=found)
    if found:
        run_queues(settings, found)
    watch(passwords[MONITORING], [Instance("redis-server.service", settings.redis.port), *map(_instance, found)])


def watch(password: Secret, instances: list[Instance]) -> None:
    """Ask each instance every half a minute whether it answers; one that hangs is killed and starts again."""
    content = schema.dump(AliveSettings(MONITORING, password.reveal(), instances))
    watchdog = programs(
        name="Install the watchdog of Redis",
        component="redis",
        programs=["redis-alive"],
        entries=[
            Directory("/etc/minipc"),
            SecretFile("", str(SETTINGS), content=content.encode()),
            File("minipc-redis-alive.service.j2", f"{SYSTEMD}/minipc-redis-alive.service"),
            File("minipc-redis-alive.timer", f"{SYSTEMD}/minipc-redis-alive.timer"),
        ],
    )
    unit(name="Enable the watchdog of Redis", unit="minipc-redis-alive.timer", restart_on=[watchdog])


def _instance(queue: Queue) -> Instance:
    return Instance(queue.unit, queue.port)


def run_queues(settings: Settings, found: list[Queue]) -> None:
    """Configure and start the queues. In a rebuild, their content comes first."""
    names = {each.service: f"redis.password.{each.service}" for each in found}
    passwords = secrets(names | {MONITORING: f"redis.password.{MONITORING}"})
    monitoring = next(user for user in settings.redis.users if user.name == MONITORING)
    programs(
        name="Configure the folders of the queues",
        component="redis",
        programs=["load-queue"],
        entries=[
            Directory(FOLDER, owner="redis", mode="750"),
            *(Directory(each.folder, owner="redis", mode="750") for each in found),
            File("queue-override.conf", f"{SYSTEMD}/redis-server@.service.d/minipc.conf"),
        ],
    )
    if not settings.has_offsite:
        for each in found:
            why = NO_OFFSITE
            not_exercised(f"backup of the queue of {each.service}", why, "redis")
    elif settings.postgres.from_backup != "refuse":
        queues_restored(name="Restore the queues", queues=found)
    for each in found:
        files = place(
            name=f"Configure the queue of {each.service}",
            component="redis",
            entries=[
                File("queue.conf.j2", each.configuration, **OWNER),
                SecretFile("queue.acl.j2", each.users, **OWNER),
            ],
            values={
                "name": each.service,
                "port": each.port,
                "folder": each.folder,
                "memory_mb": each.memory_mb,
                "keys": each.keys,
                "host": settings.host,
                "password": passwords[each.service],
                "monitoring": monitoring,
                "monitoring_password": passwords[MONITORING],
            },
        )
        unit(name=f"Start the queue of {each.service}", unit=each.unit, restart_on=[files])


if belongs_here("redis"):
    redis()
