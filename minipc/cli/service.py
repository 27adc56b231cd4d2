"""`minipc service`: the service files in `services/`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minipc import config
from minipc.cli.options import changes_the_machine, environment_option, host_option, target_options
from minipc.cli.service_render import render
from minipc.config import Settings
from minipc.config.load import group_data
from minipc.config.service import NAME, Service
from minipc.config.services import read
from minipc.core.environment import LAB, Environment
from minipc.core.errors import (
    EXIT_COULD_NOT_VERIFY,
    EXIT_FAIL,
    EXIT_PASS,
    ConfigError,
    CouldNotVerifyError,
    MissingPrerequisiteError,
)
from minipc.core.verdicts import SIGNS

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def service() -> None:
    """Describe your services, check them, add their images, import their data."""


@service.command("list")
@environment_option
def list_command(environment: Environment) -> None:
    """List the services: name, image, domains, database."""
    declared = read(group_data(environment.name)["services_folders"])
    if not declared:
        click.echo("there are no services yet\nnext: `minipc service new NAME --image IMAGE --domain DOMAIN`")
    for each in declared:
        domains = ", ".join(each.ingress.domains) if each.ingress else "no ingress"
        database = each.postgres.database if each.postgres else "no database"
        click.echo(f"{each.name:16} {each.image:40} {domains:32} {database}")


@service.command(no_args_is_help=True, short_help="Write the service file of NAME.")
@click.argument("name")
@click.option("--image", "image_name", help="Name of the container image, without tag: ghcr.io/you/shop.")
@click.option("--build", "folder", type=_FOLDER, help="Folder with a Containerfile to build it from.")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    required=True,
    help="Public name, such as shop.example.org; repeat the option for more.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of its HTTP server.")
@click.option("--health", default="/healthz", show_default=True, help="Path that answers 200.")
@click.option("--no-database", is_flag=True, help="It needs no PostgreSQL database.")
@click.option("--from", "compose_file", type=_FILE, help="docker-compose.yml to take over.")
@click.option("--service", "front", help="With --from: the service in the compose file that users reach.")
def new(
    name: str,
    image_name: str | None,
    folder: Path | None,
    domains: tuple[str, ...],
    port: int,
    health: str,
    no_database: bool,
    compose_file: Path | None,
    front: str | None,
) -> None:
    """Write the service file of NAME: complete, with comments, and valid at once. Asks nothing.

    From a compose file it takes over image, processes, environment, volumes, ports, health check and secrets, and
    names each feature that has no counterpart.
    """
    from minipc.services.create import create

    if not NAME.match(name):
        raise click.BadParameter(f"{name!r}: use lower-case letters, digits and -, beginning with a letter; at most 30")
    if not (image_name or folder or compose_file):
        raise click.UsageError(
            "say where the image comes from: --image NAME, --build FOLDER or --from docker-compose.yml"
        )
    path, draft = create(
        name,
        domains,
        image=image_name,
        folder=folder,
        compose_file=compose_file,
        front=front,
        port=port,
        health=health,
        database=not no_database,
    )
    for note in draft.notes:
        click.echo(f"not taken over: {note}")
    add_image = "" if draft.build else f"`minipc service image {name} FILE.tar` and "
    click.echo(f"wrote {path}\nnext: edit it, then {add_image}`minipc service check {name}`")


@service.command(short_help="Check the file and the image of NAME.")
@click.argument("name")
@host_option
@environment_option
def check(name: str, alias: str | None, environment: Environment) -> None:
    """Check NAME: its file, then its image, and with --host what runs on that machine.

    The image runs in a sandbox on this computer: podman (which needs root), no network, an empty scratch database. Add
    the image first with `minipc service image`, also if it is in a registry. Exit code 4: the image was not checked.
    """
    from minipc.services import contract, images

    found = _service(name, environment)
    settings = _settings(found, environment)
    click.echo(f"✓ {name}: the service file is valid, and fits the other services")
    failed = False
    try:
        image = images.ensure(found)
        gap = image.reason if isinstance(image, images.Missing) else ""
        checks = [] if isinstance(image, images.Missing) else contract.check_image(settings, found, image)
        for each in checks:
            failed |= each.outcome == "failed"
            click.echo(f"{SIGNS[each.outcome]} {each.name}{': ' if each.why else ''}{each.why}")
    except MissingPrerequisiteError as error:
        gap = error.what
    if gap:
        click.echo(f"{SIGNS['not-exercised']} NOT EXERCISED: the image: {gap}")
    if alias:
        from playbooks.apply import check as verify

        failed |= verify(environment, ["services"], alias) != EXIT_PASS
    sys.exit(EXIT_FAIL if failed else EXIT_COULD_NOT_VERIFY if gap else EXIT_PASS)


@service.command(no_args_is_help=True, short_help="Add the image of NAME from a file, or build it.")
@click.argument("words", nargs=2, metavar="NAME FILE.tar | build NAME")
@click.option("--tag", help="Version of the image in FILE.tar; default: its own tag, else its digest's first digits.")
@click.option("--fresh", is_flag=True, help="Build every layer again, for Debian's security updates.")
@environment_option
def image(words: tuple[str, str], tag: str | None, fresh: bool, environment: Environment) -> None:
    """Add the image of a service from an archive, or build it; print its name, digest and archive.

    FILE.tar is what `podman save` or `docker save` wrote, OCI or docker format, plain or gzip. `build` uses the
    Containerfile in the folder that the service file names with `build`, and needs root.
    """
    from minipc.services import images

    build = words[0] == "build"
    if build and tag:
        raise click.UsageError("--tag is for FILE.tar; a built image has its commit as its tag")
    if fresh and not build:
        raise click.UsageError("--fresh is for `minipc service image build`")
    found = _service(words[1] if build else words[0], environment)
    if build and found.build is None:
        raise click.UsageError(f"{found.name}.yaml has no `build`; name a folder with a Containerfile there")
    made = images.ensure(found, fresh=fresh) if build else images.add(found, Path(words[1]), tag=tag)
    if isinstance(made, images.Missing):
        raise CouldNotVerifyError(f"the image was not built: {made.reason}", "run the same command as root")
    click.echo(f"{made.reference}\n{made.digest}\n{made.path}")


@service.command("import", no_args_is_help=True, short_help="Move the data of NAME in, and compare it.")
@click.argument("name")
@click.option("--from", "url", help="Database to copy: postgresql://USER@HOST:PORT/DATABASE, without a password.")
@click.option("--dump", type=_FILE, help="Dump to restore: pg_dump's custom or tar format, or SQL, plain or gzip.")
@click.option("--files", type=_FOLDER, help="Folder whose files go into a volume.")
@click.option("--volume", help="The volume for --files, if the service has several.")
@click.option("--again", is_flag=True, help="Replace what an earlier import brought, and anything else that is there.")
@target_options
def import_command(
    name: str,
    url: str | None,
    dump: Path | None,
    files: Path | None,
    volume: str | None,
    again: bool,
    environment: Environment,
    alias: str | None,
) -> None:
    """Move the data of NAME in: rows and files, compared with where they came from. Then take a backup.

    The database is imported in one transaction, as the owner role. It must be empty, or --again is given; then a
    backup of what is there is taken first.
    """
    from playbooks import service_import

    if not (url or dump or files) or (url and dump):
        raise click.UsageError("give --from or --dump for the database, --files for a volume, or one of each")
    wanted = service_import.Wanted(name, url, dump, files, volume, again)
    sys.exit(changes_the_machine(service_import.run)(environment=environment, alias=alias, wanted=wanted))


@service.command(no_args_is_help=True, short_help="Show or delete the data of NAME, a service that is gone.")
@click.argument("name")
@click.option("--database", help="Its database, if that has another name than the service.")
@click.option("--delete-data", "delete", is_flag=True, help="Take a backup, then delete it. Asks for the name.")
@target_options
@changes_the_machine
def remove(name: str, database: str | None, delete: bool, environment: Environment, alias: str | None) -> None:
    """Show what is left of NAME on the machine, once its service file is removed: database, volumes, queue."""
    from playbooks import service_remove

    def ask() -> str:
        return str(click.prompt("type the name of the service to delete this for ever"))

    sys.exit(service_remove.remove(environment, alias, name, database, delete=delete, ask=ask))


def _settings(found: Service, environment: Environment) -> Settings:
    """Return the settings of an environment; those of the lab with this service while they are not complete."""
    try:
        return config.load(environment.name)
    except ConfigError as error:
        click.echo(f"{SIGNS['not-exercised']} NOT EXERCISED: the settings of {environment.name}: {error.what}")
    lab = config.load(LAB.name)
    return lab.model_copy(update={"services": lab.services.model_copy(update={"declared": (found,)})})


def _service(name: str, environment: Environment) -> Service:
    """Return a service by its name; the other settings need not be complete."""
    declared = read(group_data(environment.name)["services_folders"])
    for each in declared:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in declared) or "none"
    raise ConfigError(
        f"there is no service {name!r}; there are: {names}",
        f"use one of these names, or describe it: `minipc service new {name} --image IMAGE --domain DOMAIN`",
    )


service.add_command(render)
