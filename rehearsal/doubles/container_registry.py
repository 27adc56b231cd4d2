"""A container registry: Debian's docker-registry with TLS, and the server that gives its tokens.

Public images are pulled without a login, as from the registries of publishers: the registry sends a client to the token
server, which gives anyone a token to pull. Private images and every push need a login there.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import secrets
import socket
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding

from minipc.core.errors import MinipcError, MissingPrerequisiteError
from minipc.core.polling import wait_until
from minipc.images.prerequisites import ensure_container_tools
from rehearsal.doubles.internet import Answer, Request
from rehearsal.doubles.tls_authority import Authority

PACKAGE = "docker-registry"
_SERVICE, _ISSUER = "lab-registry", "lab-tokens"
_CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}
http: {{addr: "127.0.0.1:{port}", tls: {{certificate: {chain}, key: {chain}}}}}
auth: {{token: {{realm: "{realm}", service: {service}, issuer: {issuer}, rootcertbundle: {bundle}}}}}
log: {{level: error, accesslog: {{disabled: true}}}}
"""


class Tokens:
    """The token server (distribution's "Token Authentication"): it says who may pull and push what.

    Attributes:
        logins: password by user name. A user may pull and push everything.
        private: beginnings of the names of repositories that need a login.
        life_s: how long a token is valid, seconds; negative: it has expired already.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self.logins: dict[str, str] = {}
        self.private: tuple[str, ...] = ()
        self.life_s = 300.0

    def __call__(self, request: Request) -> Answer:
        """Answer a request for a token. A wrong login is refused, as an expired one is."""
        user = ""
        if header := request.headers.get("Authorization"):
            user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
            if self.logins.get(user) != password:
                return _as_json(401, {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect login"}]})
        scopes = parse_qs(urlsplit(request.url).query).get("scope", [])
        return _as_json(
            200, {"token": self._token(user, [granted for each in scopes if (granted := self._access(user, each))])}
        )

    def _access(self, user: str, scope: str) -> dict[str, Any] | None:
        """Return what is granted of a scope such as `repository:argoproj/argocd:pull,push`."""
        kind, name, actions = scope.split(":", 2)
        if not user and name.startswith(self.private) and self.private:
            return None
        granted = [action for action in actions.split(",") if user or action == "pull"]
        return {"type": kind, "name": name, "actions": granted}

    def _token(self, user: str, access: Sequence[Mapping[str, Any]]) -> str:
        """Return a JSON Web Token (RFC 7519) that the registry accepts, signed with ES256 (RFC 7518)."""
        certificate = base64.b64encode(self._authority.certificate.public_bytes(Encoding.DER)).decode()
        now = int(time.time())
        times = {"iat": now - 600, "nbf": now - 600, "exp": int(now + self.life_s), "jti": secrets.token_hex(8)}
        claims = {"iss": _ISSUER, "aud": _SERVICE, "sub": user, "access": access} | times
        parts = ({"typ": "JWT", "alg": "ES256", "x5c": [certificate]}, claims)
        signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        r, s = utils.decode_dss_signature(self._authority.key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


class ContainerRegistry:
    """docker-registry on a loopback address, from its Debian package, without installing it. A context manager.

    Args:
        folder: an empty folder for the program and the images.
        realm: address of the token server.

    Attributes:
        port: where it listens.

    Raises:
        MissingPrerequisiteError: the package or skopeo is not available.
    """

    def __init__(self, folder: Path, authority: Authority, realm: str) -> None:
        ensure_container_tools()
        self.folder, self.port = folder, _free_port()
        self._program = program(folder)
        self._config = folder / "config.yml"
        values = {"chain": authority.chain, "bundle": authority.bundle, "realm": realm}
        names = {"folder": folder, "port": self.port, "service": _SERVICE, "issuer": _ISSUER}
        self._config.write_text(_CONFIG.format(**values, **names), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ContainerRegistry:
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [self._program, "serve", self._config], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        if not wait_until(self._answers, within_s=20, every_s=0.1):
            self.__exit__()
            raise MinipcError(f"the lab's registry does not start: {log.read_text()[-500:]}", "see its package")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def blob(self, digest: str) -> Path:
        """Return the file in which the registry keeps a blob or a manifest."""
        algorithm, _, value = digest.partition(":")
        return self.folder / "blobs/docker/registry/v2/blobs" / algorithm / value[:2] / value / "data"

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def write_image(layout: Path, arch: str, text: str) -> str:
    """Write an image with one small file as an OCI layout, and return the digest of its manifest.

    Args:
        arch: as Debian names it.
        text: content of the file, which makes this image another than others.
    """
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as tar:
        member = tarfile.TarInfo("text")
        member.size = len(text.encode())
        tar.addfile(member, io.BytesIO(text.encode()))
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(files.getvalue()).hexdigest()}"]}
    layer = add(gzip.compress(files.getvalue(), mtime=0), "layer.v1.tar+gzip")
    described = add(json.dumps({"architecture": arch, "os": "linux", "rootfs": rootfs}).encode(), "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    found = add(json.dumps(manifest | {"config": described, "layers": [layer]}).encode(), "manifest.v1+json")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
    return str(found["digest"])


def program(folder: Path) -> Path:
    """Unpack docker-registry from its Debian package into a folder, and return its path.

    Raises:
        MissingPrerequisiteError: the package cannot be downloaded.
    """
    for argv in (["apt-get", "-qq", "download", PACKAGE], ["sh", "-c", f"dpkg-deb --extract {PACKAGE}_*.deb package"]):
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MissingPrerequisiteError(
                f"Debian's {PACKAGE} is not available: {reason}", f"apt-get download {PACKAGE}"
            )
    return folder / "package/usr/bin/docker-registry"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_json(status: int, value: object) -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
