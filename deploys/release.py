"""Record what is installed: git commit, package versions, time. It runs last, so only a complete converge is recorded.

`minipc release` is something else: it deploys a version of the service (docs/howto/release.md).

pyinfra inventory/production.py deploys/release.py
"""

from pyinfra.api import deploy

from minipc.config.components import recorded_packages
from minipc.pyinfra_ext.deploying import config
from minipc.pyinfra_ext.operations.release import release_recorded


@deploy("release")
def release() -> None:
    config()
    release_recorded(name="Record the installed release", packages=recorded_packages())


release()
