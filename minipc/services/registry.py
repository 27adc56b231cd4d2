"""Ask a container registry for an image, with skopeo and the stored credentials. Only signatures are downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipc import secrets
from minipc.config import Settings
from minipc.config.schema import K3sRegistry
from minipc.core.errors import CouldNotVerifyError, MinipcError
from minipc.core.process import network_environment
from minipc.images import prerequisites
from minipc.secrets.catalogue import registry_password

# skopeo itself tries five times when the rate is limited, with pauses of 2 to 32 s.
TIMEOUT_S = 90
SIGNATURE = "dev.cosignproject.cosign/signature"
"""Annotation of a layer: the signature of its content, in base64."""
# A signature is half a kilobyte, and an image has a few.
MAX_BYTES, MAX_LAYERS = 65536, 100
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ABSENT = "the registry does not have it for this architecture"
# What skopeo prints -> what it means, and what to do. In this order.
_MEANINGS = (
    (
        ("does not match provided manifest digest",),
        "the registry serves something else under this digest",
        "find out who changed it; push the released image again, or add it: `minipc service image NAME FILE.tar`",
    ),
    (
        ("toomanyrequests", "too many requests", "429"),
        "the registry limits the rate of requests (429)",
        "wait, or log in (k3s_registries)",
    ),
    (
        ("unauthorized", "authentication required", "denied", "401", "403"),
        "the registry refuses the login: a wrong or expired token, or a private image",
        "set the token again: `minipc secrets set k3s.registry.NAME`, with the registry in k3s_registries",
    ),
    (
        ("manifest unknown", "not found", "404", "no image found"),
        _ABSENT,
        "push it, or add it as a file: `minipc service image NAME FILE.tar`",
    ),
)


@dataclass(frozen=True)
class Signature:
    """What cosign stores for one signature.

    Attributes:
        payload: what was signed, JSON in the format "simple signing".
        signature: in base64.
    """

    payload: bytes
    signature: str


class MissingSignatureError(MinipcError):
    """Nothing is stored as the signatures of an image."""


def digest_of(settings: Settings, image: str, version: str, arch: str) -> str:
    """Return the digest of an image that can be pulled now.

    Args:
        image: name without tag, as in a service file.
        version: a tag, or `sha256:…`.
        arch: as Debian names it.

    Raises:
        MinipcError: the registry answers, but this image cannot be pulled; says why.
        CouldNotVerifyError: the registry does not answer, or limits the rate.
    """
    reference = f"{image}@{version}" if version.startswith("sha256:") else f"{image}:{version}"
    platform = ["--override-os", "linux", "--override-arch", arch]
    said = _skopeo(
        settings,
        reference,
        [*platform, "inspect", "--no-tags", "--format", "{{.Digest}} {{.Architecture}}", f"docker://{reference}"],
    )
    digest, _, found = said.strip().partition(" ")
    if found != arch:
        raise MinipcError(f"{reference} is for {found}, the machine is {arch}", f"build it for linux/{arch}")
    return digest


def signatures_of(settings: Settings, image: str, digest: str) -> list[Signature]:
    """Return what is stored next to an image as its cosign signatures. All of it is data; nothing is verified here.

    Args:
        image: name without tag.
        digest: of the image, `sha256:…`.

    Raises:
        MissingSignatureError: nothing is stored there.
        MinipcError: the registry answers, but this cannot be pulled, or it is not what cosign writes.
        CouldNotVerifyError: the registry does not answer, or limits the rate.
    """
    tagged = f"{image}:{digest.replace(':', '-')}.sig"
    try:
        raw = _skopeo(settings, tagged, ["inspect", "--raw", f"docker://{tagged}"])
    except MinipcError as error:
        if error.what.endswith(_ABSENT):
            raise MissingSignatureError(f"{image}@{digest} is not signed: {tagged} does not exist") from None
        raise
    layers = _signature_layers(raw, tagged)
    with tempfile.TemporaryDirectory(prefix="minipc-signatures-") as folder:
        # By digest: what was measured is what is fetched.
        pinned = f"{image}@sha256:{hashlib.sha256(raw.encode()).hexdigest()}"
        _skopeo(settings, pinned, ["--insecure-policy", "copy", "--quiet", f"docker://{pinned}", f"dir:{folder}"])
        found = []
        for layer in layers:
            payload = Path(folder, str(layer["digest"]).removeprefix("sha256:")).read_bytes()
            found.append(Signature(payload, str(layer["annotations"][SIGNATURE])))
    return found


def _signature_layers(raw: str, tagged: str) -> list[dict[str, Any]]:
    """Return the layers with signatures in a manifest that anybody may have written. Raises MinipcError."""
    step = "sign it again with cosign, or find out who wrote it"
    try:
        manifest = json.loads(raw)
        blobs = [manifest["config"], *manifest["layers"]]
        small = all(
            isinstance(each["size"], int) and 0 <= each["size"] <= MAX_BYTES and _DIGEST.fullmatch(each["digest"])
            for each in blobs
        )
        layers = [
            each for each in manifest["layers"] if isinstance((each.get("annotations") or {}).get(SIGNATURE), str)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MinipcError(f"{tagged} is not what cosign writes", step) from None
    if not small or len(blobs) > MAX_LAYERS:
        raise MinipcError(f"{tagged} is larger than signatures are", step)
    return layers


def _skopeo(settings: Settings, reference: str, argv: Sequence[str]) -> str:
    """Return what skopeo prints. Raises MinipcError or CouldNotVerifyError, with what the registry's answer means."""
    prerequisites.ensure_container_tools()
    with tempfile.TemporaryDirectory(prefix="minipc-registry-") as folder:
        login = Path(folder, "auth.json")
        login.touch(mode=0o600)
        login.write_text(json.dumps(_logins(settings, reference)), encoding="utf-8")
        # Never the credentials of this account: the machine has ours only.
        verb = next(number for number, word in enumerate(argv) if word in ("inspect", "copy")) + 1
        command = ["skopeo", *argv[:verb], "--authfile", str(login), *argv[verb:]]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=TIMEOUT_S,
                env=network_environment(),
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise CouldNotVerifyError(f"{reference}: no answer within {TIMEOUT_S} s", "try it again later") from None
    if done.returncode:
        raise _error(reference, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def _error(reference: str, said: str) -> MinipcError:
    # Without the name, and whole words only: a digest or a port may contain 403.
    lower = said.lower().replace(reference.lower(), "")
    for words, meaning, step in _MEANINGS:
        if any(re.search(rf"\b{re.escape(word)}\b", lower) for word in words):
            kind = CouldNotVerifyError if "429" in words else MinipcError
            return kind(f"{reference}: {meaning}", step)
    last = said.strip().splitlines()[-1:] or ["no reason given"]
    return CouldNotVerifyError(f"{reference}: the registry does not answer: {last[0][-200:]}", "try it again later")


def _logins(settings: Settings, image: str) -> Mapping[str, object]:
    """Return the content of an authfile with the login of the image's registry; empty if it needs none."""
    host = image.split("/", 1)[0]
    found: Sequence[K3sRegistry] = [each for each in settings.k3s.registries if each.host == host]
    logins = {}
    for each in found:
        name = registry_password(each.name)
        token = secrets.load(settings.environment, [name])[name].reveal()
        logins[each.host] = {"auth": base64.b64encode(f"{each.username}:{token}".encode()).decode()}
    return {"auths": logins}
