"""Redis: the cache. Data class `cache`: bounded memory, nothing persisted, never restored.

pyinfra inventory/production.py deploys/redis.py
"""

from pyinfra.api import deploy

from minipc.deploying import belongs_here, config, secrets
from minipc.operations import Directory, File, SecretFile, install, place, unit


@deploy("redis")
def redis() -> None:
    settings = config()
    passwords = secrets({user.name: f"redis.password.{user.name}" for user in settings.redis.users})

    # install
    install(name="install packages", packages=["redis-server"])

    # configure
    files = place(
        name="configure",
        component="redis",
        entries=[
            Directory("/etc/redis", owner="redis", mode="2770"),
            File("redis.conf.j2", "/etc/redis/redis.conf", owner="redis", mode="640"),
            SecretFile("users.acl.j2", "/etc/redis/users.acl", owner="redis", mode="640"),
            File("override.conf", "/etc/systemd/system/redis-server.service.d/minipc.conf"),
        ],
        values={"redis": settings.redis, "host": settings.host, "passwords": passwords},
    )

    # activate
    unit(name="activate", unit="redis-server.service", restart_on=[files])


if belongs_here("redis"):
    redis()
