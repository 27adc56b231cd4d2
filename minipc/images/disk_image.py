"""Build the disk image: Debian 13 on a GPT disk that boots with EFI, like the base image but with a kernel.

Cached under a hash of everything it is made from. It has no identity: name, keys and addresses are put on the EFI
partition of each copy (`give_identity`), where any computer can put them, and the first boot moves them to their place.
The disk may be larger than the image: the root file system grows at the first boot.

An encrypted image is not cached and has its identity inside, because it is made for one machine (`build_encrypted`).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from minipc.core.errors import MissingPrerequisiteError
from minipc.core.paths import cache_dir
from minipc.core.process import call, say
from minipc.images import debian_root
from minipc.images.apt_sources import Mirrors, controller_mirrors, render_deb822
from minipc.images.disk_encryption import CUSTOMISE as CUSTOMISE_ENCRYPTED
from minipc.images.disk_encryption import HEADER_MIB, TPM2_ARCHITECTURE, Encryption, encrypt

# Debian architecture -> kernel, and firmware for common hardware.
KERNELS = {
    "amd64": ("linux-image-amd64", "amd64-microcode", "intel-microcode", "firmware-realtek"),
    "arm64": ("linux-image-arm64", "firmware-realtek"),
}
# Name of the EFI program that firmware starts by default.
EFI_PROGRAMS = {"amd64": "BOOTX64.EFI", "arm64": "BOOTAA64.EFI"}
# Packages in addition to the base image's: kernel, boot loader, udev, and tools that grow the file system.
PACKAGES = ("e2fsprogs", "initramfs-tools", "systemd-boot", "systemd-repart", "systemd-resolved", "udev", "zstd")

MIB = 1024**2
ESP_OFFSET = MIB
ESP_MIB = 512
IMAGE_MIB = 3072
# The last MiB is not used, because GPT has its backup there.
ROOT_MIB = IMAGE_MIB - ESP_MIB - 2
IDENTITY = "minipc/identity.tar"

# One FAT partition for boot, the rest is ext4; sizes in sectors of 512 bytes.
LAYOUT = f"""\
label: gpt
start={ESP_OFFSET // 512}, size={ESP_MIB * MIB // 512}, type=U, name=EFI
size={ROOT_MIB * MIB // 512}, type=ROOT_TYPE, name=root
"""
# systemd's names of the root partition's type, which systemd-repart grows.
ROOT_TYPES = {"amd64": "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "arm64": "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"}

FIRST_BOOT = """\
[Unit]
Description=First boot: name, keys and addresses from the EFI partition
DefaultDependencies=no
RequiresMountsFor=/efi
ConditionPathExists=/efi/minipc/identity.tar
After=local-fs.target systemd-udevd.service
Before=sysinit.target network-pre.target systemd-networkd.service ssh.service
Wants=network-pre.target

[Service]
Type=oneshot
ExecStart=/usr/lib/minipc-first-boot

[Install]
WantedBy=sysinit.target
"""
# Interfaces get the names in the identity files; they are not up yet.
FIRST_BOOT_PROGRAM = """\
#!/bin/sh
set -eu
tar -C / --no-same-owner --no-overwrite-dir -xpf /efi/minipc/identity.tar
rm -r /efi/minipc
sync
hostname -F /etc/hostname
udevadm control --reload
udevadm trigger --action=add --subsystem-match=net --settle
"""
# Any network card, unless an identity file configures it; not the cluster's virtual cards (systemd.network(5)).
DHCP = """\
[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes
"""
CUSTOMISE = """\
UUID=@UUID@
mkdir -p efi usr/lib/repart.d etc/kernel
cat > etc/fstab <<END
UUID=$UUID / ext4 defaults,noatime,errors=remount-ro,x-systemd.growfs 0 1
PARTLABEL=EFI /efi vfat umask=0077,nosuid,nodev,noexec 0 2
END
printf '[Partition]\\nType=root\\n' > usr/lib/repart.d/50-root.conf
echo "root=UUID=$UUID rw console=tty0 console=ttyS0,115200" > etc/kernel/cmdline
echo debian > etc/kernel/entry-token
echo layout=bls > etc/kernel/install.conf
cat > etc/systemd/network/90-any.network <<'END'
@DHCP@END
cat > etc/systemd/system/minipc-first-boot.service <<'END'
@UNIT@END
cat > usr/lib/minipc-first-boot <<'END'
@PROGRAM@END
chmod 755 usr/lib/minipc-first-boot
# Names are looked up where DHCP says, and nobody is asked or answered by multicast.
mkdir -p etc/systemd/resolved.conf.d
printf '[Resolve]\\nLLMNR=no\\nMulticastDNS=no\\n' > etc/systemd/resolved.conf.d/50-no-multicast.conf
ln -sfT ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
systemctl --root="$1" --quiet enable minipc-first-boot.service
echo uninitialized > etc/machine-id
@ENCRYPTION@
export SYSTEMD_RELAX_ESP_CHECKS=1
# The boot loader's own tools want a file system of its own there.
mount -t tmpfs -o mode=700 esp efi
chroot "$1" bootctl --no-variables --esp-path=/efi --quiet install
for kernel in $(ls lib/modules); do
  boot="/boot/vmlinuz-$kernel /boot/initrd.img-$kernel"
  chroot "$1" env BOOT_ROOT=/efi kernel-install --esp-path=/efi add "$kernel" $boot
done
printf 'timeout 0\\nconsole-mode keep\\n' > efi/loader/loader.conf
rm -f efi/loader/random-seed
cp -R efi/. @ESP@
umount efi
: > etc/machine-id
"""


def ensure() -> Path:
    """Return the image. Build it if it is not in the cache (two minutes; needs root).

    Raises:
        MissingPrerequisiteError: this architecture is not known.
        MinipcError: the build failed.
    """
    mirrors, architecture = controller_mirrors(), _architecture()
    path = cache_dir("disk-images") / f"{inputs_hash(mirrors, architecture)}.img"
    with debian_root.lock():
        if not path.exists():
            work = path.with_name(f".build-{path.stem}")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            _build(work, path, mirrors, architecture)
            shutil.rmtree(work)
    return path


def build_encrypted(path: Path, identity: Mapping[str, tuple[str, int]], encryption: Encryption) -> None:
    """Build an image whose root partition is encrypted (two minutes; needs root).

    Args:
        identity: files of the machine, as for `give_identity`; they are on the encrypted partition.

    Raises:
        MissingPrerequisiteError: this architecture is not known, or not one whose TPM can unlock a disk.
        MinipcError: the build failed. Nothing of it is left.
    """
    mirrors, architecture = controller_mirrors(), _architecture()
    if encryption.tpm2 and architecture != TPM2_ARCHITECTURE:
        raise MissingPrerequisiteError(
            f"host_disk_encryption is tpm2, which works on {TPM2_ARCHITECTURE} only; this is {architecture}",
            'set it to "passphrase" in group_data/production.py',
        )
    # Everything in it is removed in any case: until it is encrypted it contains the machine's private keys.
    with (
        debian_root.lock(),
        tempfile.TemporaryDirectory(dir=cache_dir("disk-images"), prefix=".build-") as folder,
    ):
        files = Path(folder) / "files.tar"
        files.touch(mode=0o600)
        files.write_bytes(pack({**identity, **encryption.files()}))
        _build(Path(folder), path, mirrors, architecture, encryption)


def _architecture() -> str:
    architecture = call("dpkg", "--print-architecture").strip()
    if architecture not in KERNELS:
        raise MissingPrerequisiteError(
            f"no disk image for {architecture}; known: {', '.join(KERNELS)}", "use a controller with one of these"
        )
    return architecture


def inputs_hash(mirrors: Mirrors, architecture: str) -> str:
    """Return 16 hexadecimal digits that change if any input of the image changes."""
    base = debian_root.inputs_hash(mirrors, architecture=architecture)
    inputs: list[object] = [base, PACKAGES, KERNELS[architecture]]
    inputs += [
        LAYOUT,
        IMAGE_MIB,
        CUSTOMISE,
        FIRST_BOOT,
        FIRST_BOOT_PROGRAM,
        DHCP,
        render_deb822(mirrors, debian_root.SUITE),
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def copy_to(source: Path, disk: Path, size_bytes: int) -> None:
    """Copy the image to a disk of another size."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(disk)], check=True, timeout=600)
    with disk.open("r+b") as file:
        file.truncate(max(size_bytes, IMAGE_MIB * MIB))


def give_identity(disk: Path, files: Mapping[str, tuple[str, int]]) -> None:
    """Write files to the EFI partition of an image. The first boot moves them to their place.

    Args:
        files: path without leading slash -> text and mode.
    """
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "identity.tar"
        packed.write_bytes(pack(files))
        packed.chmod(0o600)
        partition = f"{disk}@@{ESP_OFFSET}"
        call("mmd", "-D", "s", "-i", partition, "::minipc")
        call("mcopy", "-o", "-i", partition, str(packed), f"::{IDENTITY}")


def pack(files: Mapping[str, tuple[str, int]]) -> bytes:
    """Return a tar archive of files that belong to root; only root can read their directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (text, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), mode
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def extract_kernel(disk: Path, folder: Path) -> Path:
    """Copy the newest kernel on the EFI partition into a folder."""
    partition = f"{disk}@@{ESP_OFFSET}"
    names = call("mdir", "-b", "-/", "-i", partition, "::debian").split()
    kernel = max(name for name in names if name.endswith("/linux"))
    call("mcopy", "-o", "-n", "-i", partition, kernel, str(folder / "linux"))
    return folder / "linux"


def _build(work: Path, path: Path, mirrors: Mirrors, architecture: str, encryption: Encryption | None = None) -> None:
    started = time.monotonic()
    packages = [*debian_root.PACKAGES, *PACKAGES, *KERNELS[architecture], *(encryption.packages if encryption else ())]
    say(f"lab: building the disk image: {debian_root.SUITE} from {mirrors.main} with {', '.join(packages)}")
    identifier = str(uuid.uuid4())
    esp = work / "esp"
    esp.mkdir()
    script = customise(identifier, esp, work / "files.tar" if encryption else None)
    debian_root.bootstrap(work / "root", work, mirrors, packages=packages, customise=script)
    _assemble(work, identifier, ROOT_TYPES[architecture], EFI_PROGRAMS[architecture], encryption)
    shutil.move(work / "disk.img", path)
    say(f"lab: disk image ready after {time.monotonic() - started:.0f} s: {path}")


def customise(identifier: str, esp: Path, files: Path | None = None) -> str:
    """Return the script that turns the base image's content into a bootable system.

    Args:
        identifier: UUID of the root file system.
        esp: folder for the boot files.
        files: archive with the identity and the files of the encryption; None: not encrypted.
    """
    parts = {
        "@ENCRYPTION@\n": CUSTOMISE_ENCRYPTED.replace("@FILES@", str(files)) if files else "",
        "@ESP@": str(esp),
        "@UUID@": identifier,
        "@DHCP@": DHCP,
        "@UNIT@": FIRST_BOOT,
        "@PROGRAM@": FIRST_BOOT_PROGRAM,
    }
    script = CUSTOMISE
    for mark, text in parts.items():
        script = script.replace(mark, text)
    return debian_root.CUSTOMISE + script


def _assemble(work: Path, identifier: str, root_type: str, efi_program: str, encryption: Encryption | None) -> None:
    """Write partitions and file systems into a file, without mounting anything."""
    disk, esp = work / "disk.img", work / "esp"
    if not (esp / "EFI/BOOT" / efi_program).exists():
        raise MissingPrerequisiteError(
            f"the boot loader was not installed: there is no EFI/BOOT/{efi_program}", f"read {work}/log"
        )
    disk.touch(mode=0o600, exist_ok=False)
    _truncate(disk, IMAGE_MIB)
    call("sfdisk", "--quiet", str(disk), stdin=LAYOUT.replace("ROOT_TYPE", root_type))
    sectors = ESP_OFFSET // 512
    call("mkfs.vfat", "-F", "32", "-n", "EFI", "--offset", str(sectors), str(disk), str(ESP_MIB * 1024))
    call("mcopy", "-s", "-i", f"{disk}@@{ESP_OFFSET}", *map(str, sorted(esp.iterdir())), "::", timeout=300)
    start = ESP_OFFSET // MIB + ESP_MIB
    make = ("mkfs.ext4", "-q", "-F", "-L", "root", "-U", identifier, "-d", str(work / "root"))
    if encryption is None:
        call(*make, "-E", f"offset={start * MIB}", str(disk), f"{ROOT_MIB}M", timeout=600)
        return
    partition = work / "root.img"
    partition.touch(mode=0o600)
    call(*make, str(partition), f"{ROOT_MIB - HEADER_MIB}M", timeout=600)
    _truncate(partition, ROOT_MIB)
    encrypt(partition, encryption.passphrase)
    call("dd", f"if={partition}", f"of={disk}", "bs=1M", f"seek={start}", "conv=notrunc", timeout=600)


def _truncate(path: Path, size_mib: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_mib * MIB)
