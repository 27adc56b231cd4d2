"""`minipc image`: build a disk image for real hardware or for lab machines with their own kernel."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import click

from minipc.cli.options import target_options
from minipc.core.environment import Environment
from minipc.core.errors import RefusedError
from minipc.images import disk_image
from minipc.images.disk_encryption import UNLOCK_PORT
from minipc.images.prerequisites import ensure_image_tools
from minipc.remote.host_keys import fingerprint_of, generate_host_key
from minipc.remote.inventory import Target, the_target
from playbooks.disk_encryption import encryption_of


@click.group(name="image")
def image() -> None:
    """Build disk images with Debian 13, ready for `minipc adopt`."""


@image.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@target_options
def build(output: Path, alias: str | None, environment: Environment) -> None:
    """Build a disk image for a machine in the inventory, with its name, a new host key and the operator's keys."""
    target = the_target(environment, alias)
    if output.exists():
        raise RefusedError(f"{output} exists", "remove it, or choose another name; it contains a private key")
    encryption = encryption_of(environment, target.settings)
    ensure_image_tools(encrypted=encryption is not None)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        host_key = generate_host_key(Path(folder), target.settings.host.name)
        private_key = (Path(folder) / "ssh_host_ed25519_key").read_text()
    files = identity(target, private_key, host_key)
    new = output.with_name(f".{output.name}.new")
    try:
        if encryption:
            disk_image.build_encrypted(new, files, encryption)
        else:
            source = disk_image.ensure()
            new.touch(mode=0o600)
            disk_image.copy_to(source, new, disk_image.IMAGE_MIB * disk_image.MIB)
            disk_image.give_identity(new, files)
        shutil.move(new, output)
    finally:
        new.unlink(missing_ok=True)
    fingerprint = fingerprint_of(host_key)
    click.echo(f"{output}: {disk_image.IMAGE_MIB} MiB after {time.monotonic() - started:.0f} s, for {target.alias}")
    click.echo(f"  host key  {fingerprint}")
    click.echo(f"  write it  dd if={output} of=/dev/DISK bs=4M conv=fsync status=progress   (erases that disk)")
    click.echo(f"  enrol it  minipc adopt {target.alias} --fingerprint {fingerprint}")
    if encryption:
        click.echo(
            f"  unlock it minipc disk unlock --host {target.alias}   (at each boot that asks for the passphrase)"
        )
        click.echo(f"            it then answers on port {UNLOCK_PORT} with {fingerprint_of(encryption.host_key)}")
        click.echo(
            f"  then      minipc disk prepare --host {target.alias}   (after adopting it: the whole disk, the TPM)"
        )
        click.echo("  seal a new bundle: minipc bundle create   (it contains the passphrase)")
    click.echo("  then remove the image: it contains the machine's private host key")


def identity(target: Target, private_key: str, host_key: str) -> dict[str, tuple[str, int]]:
    """Return the files that the first boot puts in place: path without leading slash -> text and mode.

    Addresses come by DHCP.
    """
    name = target.settings.host.name
    keys = "".join(f"{key}\n" for key in target.settings.host.operator_keys)
    return {
        "etc/hostname": (f"{name}\n", 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost\n", 0o644),
        "etc/ssh/ssh_host_ed25519_key": (private_key, 0o600),
        "etc/ssh/ssh_host_ed25519_key.pub": (f"{host_key}\n", 0o644),
        "root/.ssh/authorized_keys": (keys, 0o600),
    }
