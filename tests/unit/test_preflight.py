"""`minipc preflight`: what would keep a rebuild from succeeding is found before anything is revoked."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from minipc.artifacts.store import Artifact
from minipc.core.environment import LAB, PRODUCTION
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError
from minipc.gitops.deploy_files import Version, release, release_file
from minipc.services import registry
from playbooks import preflight, rebuild
from playbooks.doctor import Finding

DIGEST = "sha256:" + "a" * 64


def service(name: str = "shop"):
    ingress = SimpleNamespace(domains=["shop.example.org"])
    return SimpleNamespace(name=name, image=f"ghcr.io/you/{name}", image_signer=None, build=None, ingress=ingress)


@pytest.fixture
def subject(monkeypatch):
    """A machine in K3s with one service and an off-site host, where all is well."""
    declared = (service(),)
    services = SimpleNamespace(runtime="k3s", declared=declared, public=declared, domain="shop.example.org")
    dns = SimpleNamespace(provider="none", ipv4="93.184.216.34", ipv6=None, address_url="https://a.example.org")
    settings = SimpleNamespace(
        services=services,
        dns=dns,
        vpn=SimpleNamespace(network="10.99.0.0/24"),
        edge=SimpleNamespace(acme="production"),
        where=PRODUCTION,
        environment="production",
        offsite=SimpleNamespace(s3=None, sftp=None),
    )
    data = {"ssh_hostname": "192.168.1.10"}
    side = SimpleNamespace(ipv4="192.168.1.10")
    target = SimpleNamespace(alias="minipc", settings=settings, data=data, side=lambda _: side, role="mini")
    monkeypatch.setattr(preflight, "architecture", lambda _: "amd64")
    monkeypatch.setattr(preflight, "_resolved", lambda _: {"93.184.216.34"})
    return preflight._Subject(target, SimpleNamespace(alias="offsite"))


def says(monkeypatch, *answers):
    """Makes the machines answer one after the other."""
    left = list(answers)

    def on(*_, **__):
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(preflight, "on", on)


# --- upstream files -------------------------------------------------------------------------------------------------


@pytest.fixture
def store(monkeypatch):
    """Set which artifacts are not available."""

    def lacking(*names: str) -> None:
        pins = [SimpleNamespace(name=name, arch="amd64") for name in ("k3s", "k3s-images", "argocd-manifest", "loki")]

        def resolve(name, arch, **_):
            missing = name in names
            return Artifact(name, arch, "missing" if missing else "locked", "1", name, None if missing else __file__)

        monkeypatch.setattr(preflight, "default_store", lambda: SimpleNamespace(catalogue=SimpleNamespace(pins=pins)))
        monkeypatch.setattr(preflight, "resolve", resolve)

    return lacking


def test_a_missing_file_of_the_runtime_is_not_met(subject, store):
    store("k3s")
    with pytest.raises(MinipcError, match="k3s"):
        preflight._artifacts(subject)


def test_files_that_only_k3s_needs_are_not_asked_for_without_it(subject):
    with_k3s = {pin.name for pin in preflight.pins_for(subject.target, "amd64")}
    subject.target.settings.services.runtime = "podman"
    without = {pin.name for pin in preflight.pins_for(subject.target, "amd64")}
    assert with_k3s - without == {"k3s", "k3s-images", "argocd-manifest", "argocd-images"}
    assert "loki" in without


def test_another_missing_file_is_not_exercised(subject, store):
    store("loki")
    with pytest.raises(preflight.UnknownError, match="amd64: loki"):
        preflight._artifacts(subject)


def test_files_that_are_all_there_are_met(subject, store):
    store()
    assert preflight._artifacts(subject) == ""


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def approved(monkeypatch):
    """A deploy repository in which DIGEST of the service is approved."""
    content = release(service(), Version("ghcr.io/you/shop", "", DIGEST, "v1"))
    trust = SimpleNamespace(approvals=SimpleNamespace(commits=lambda: {"shop": "c1"}), environment=PRODUCTION)
    files = {release_file("shop", "production"): content}
    repository = SimpleNamespace(trust=trust, has=lambda _: True, tree=lambda _: SimpleNamespace(files=files))

    @contextmanager
    def opened(*_):
        yield repository

    monkeypatch.setattr(preflight.deploy_repository, "opened", opened)
    monkeypatch.setattr(preflight, "trust_of", lambda _: trust)
    monkeypatch.setattr(preflight, "own_arch", lambda: "amd64")
    monkeypatch.setattr(preflight.images, "find", lambda *_: None)
    monkeypatch.setattr(preflight.images, "current", lambda *_: None)


def test_a_released_image_is_asked_for_by_its_digest(subject, approved, monkeypatch):
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(preflight.registry, "digest_of", lambda _, *what: asked.append(what))
    assert preflight._images(subject) == ""
    assert asked == [("ghcr.io/you/shop", DIGEST, "amd64")]


def test_an_image_that_is_a_file_here_needs_no_registry(subject, approved, monkeypatch):
    monkeypatch.setattr(preflight.images, "find", lambda name, digest: digest == DIGEST or None)
    monkeypatch.setattr(preflight.registry, "digest_of", lambda *_: pytest.fail("asked"))
    assert preflight._images(subject) == ""


def test_a_refused_login_is_not_met(subject, approved, monkeypatch):
    def refuse(*_):
        raise MinipcError("the registry refuses the login")

    monkeypatch.setattr(preflight.registry, "digest_of", refuse)
    with pytest.raises(MinipcError, match="refuses the login"):
        preflight._images(subject)


def test_an_image_without_a_registry_is_expected_in_the_backup(subject, approved, monkeypatch):
    subject.target.settings.services.declared[0].image = "minipc.local/shop"
    monkeypatch.setattr(preflight.registry, "digest_of", lambda *_: (_ for _ in ()).throw(MinipcError("no such host")))
    assert "image of shop is not in the cache here: it must be in the restored backup" in preflight._images(subject)


def test_an_unreachable_repository_is_not_met_once_something_was_released(subject, approved, monkeypatch):
    @contextmanager
    def unreachable(*_):
        raise CouldNotVerifyError("no route to host")
        yield

    monkeypatch.setattr(preflight.deploy_repository, "opened", unreachable)
    with pytest.raises(CouldNotVerifyError):
        preflight._images(subject)


def test_before_the_first_release_a_missing_image_is_a_note(subject, approved, monkeypatch):
    def absent(*_):
        raise MinipcError("the registry does not have it")

    @contextmanager
    def none(*_):
        raise ConfigError("there is no deploy repository")
        yield

    monkeypatch.setattr(preflight.deploy_repository, "opened", none)
    monkeypatch.setattr(preflight, "trust_of", lambda _: SimpleNamespace(approvals=SimpleNamespace(commits=dict)))
    monkeypatch.setattr(preflight.registry, "digest_of", absent)
    note = preflight._images(subject)
    assert "no deploy repository" in note
    assert "shop will not be released" in note


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("reading manifest latest in ghcr.io/you/shop: unauthorized: authentication required", MinipcError, "token"),
        ("toomanyrequests: You have reached your pull rate limit", CouldNotVerifyError, "429"),
        ("manifest unknown", MinipcError, "does not have it"),
        ("dial tcp: lookup ghcr.io: no such host", CouldNotVerifyError, "does not answer"),
    ],
)
def test_what_a_registry_says_is_explained(said, kind, message):
    error = registry._error("ghcr.io/you/shop:v1", said)
    assert type(error) is kind
    assert message in error.what
    assert error.next_step


@pytest.mark.parametrize("found", ["arm64", "amd64"])
def test_an_image_for_another_architecture_is_refused(monkeypatch, found):
    seen: list[list[str]] = []

    def run(argv, **_):
        seen.append(argv)
        return subprocess.CompletedProcess(argv, 0, f"{DIGEST} {found}\n".encode(), b"")

    settings = SimpleNamespace(k3s=SimpleNamespace(registries=[]))
    monkeypatch.setattr(registry.prerequisites, "ensure_container_tools", lambda: None)
    monkeypatch.setattr(registry.subprocess, "run", run)
    if found == "amd64":
        assert registry.digest_of(settings, "ghcr.io/you/shop", "v1", "amd64") == DIGEST
        assert seen[0][-1] == "docker://ghcr.io/you/shop:v1"
    else:
        with pytest.raises(MinipcError, match="is for arm64, the machine is amd64"):
            registry.digest_of(settings, "ghcr.io/you/shop", DIGEST, "amd64")
        assert seen[0][-1] == f"docker://ghcr.io/you/shop@{DIGEST}"


def test_a_token_is_in_a_file_and_never_an_argument(monkeypatch):
    settings = SimpleNamespace(
        environment="production",
        k3s=SimpleNamespace(registries=[SimpleNamespace(name="ghcr", host="ghcr.io", username="you")]),
    )
    monkeypatch.setattr(
        registry.secrets, "load", lambda _, names: {names[0]: SimpleNamespace(reveal=lambda: "hunter2")}
    )
    assert set(registry._logins(settings, "ghcr.io/you/shop")["auths"]) == {"ghcr.io"}
    assert registry._logins(settings, "quay.io/you/shop") == {"auths": {}}


# --- clock, disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("off", "met"), [(0, True), (-3600, False), (86400 * 400, False)])
def test_a_wrong_clock_is_not_met(subject, monkeypatch, off, met):
    says(monkeypatch, f"yes\n{time.time() + off:.0f}")
    if met:
        assert preflight._clock(subject) == ""
    else:
        with pytest.raises(MinipcError, match="clock differs"):
            preflight._clock(subject)


def test_too_little_disk_is_not_met(subject, store, monkeypatch):
    store()
    monkeypatch.setattr(preflight.images, "current", lambda _: None)
    monkeypatch.setattr(preflight, "default_store", lambda: SimpleNamespace(catalogue=SimpleNamespace(pins=[])))
    says(monkeypatch, "1000M", "/var/lib/postgresql/17/main/PG_VERSION\n1000M")
    with pytest.raises(MinipcError, match="1000 MB free below /var, 1536 MB are needed"):
        preflight._disk(subject)
    assert "already" in preflight._disk(subject), "a rebuild that was cut off continues"


# --- names and ports ------------------------------------------------------------------------------------------------


def test_dns_that_points_elsewhere_is_not_met(subject, monkeypatch):
    assert preflight._names(subject) == ""
    monkeypatch.setattr(preflight, "_resolved", lambda _: {"192.0.2.1"})
    with pytest.raises(MinipcError, match=r"DNS points elsewhere: shop\.example\.org → 192\.0\.2\.1"):
        preflight._names(subject)
    monkeypatch.setattr(preflight, "_resolved", lambda _: set())
    with pytest.raises(MinipcError, match="no DNS record was found"):
        preflight._names(subject)


def test_at_home_the_address_of_this_computers_router_is_the_machines(subject, monkeypatch):
    subject.target.settings.dns.ipv4 = None
    monkeypatch.setattr(preflight, "public_address", lambda *_, **__: "93.184.216.34")
    says(monkeypatch, "192.168.1.5 40000 192.168.1.10 22")
    assert preflight._names(subject) == ""
    monkeypatch.setattr(preflight, "public_address", lambda *_, **__: "93.184.216.99")
    says(monkeypatch, "192.168.1.5 40000 192.168.1.10 22")
    with pytest.raises(MinipcError, match="DNS points elsewhere"):
        preflight._names(subject)
    for client in ("10.99.0.2 4 10.99.0.1 22", "198.51.100.7 4 192.168.1.10 22"):
        says(monkeypatch, client)
        with pytest.raises(preflight.UnknownError, match="behind a router"):
            preflight._names(subject)


def test_names_that_minipc_sets_are_not_asked(subject):
    subject.target.settings.dns.provider = "cloudflare"
    assert preflight._names(subject) == "minipc sets the records"


def test_a_port_that_is_not_forwarded_is_not_met(subject, monkeypatch):
    says(monkeypatch, "", "open")
    assert preflight._port(subject) == ""
    says(monkeypatch, "", "closed")
    with pytest.raises(MinipcError, match=r"port 80 of 93\.184\.216\.34") as caught:
        preflight._port(subject)
    assert "192.168.1.10 in your router" in caught.value.next_step


def test_a_port_that_cannot_be_asked_stops_nothing(subject, monkeypatch):
    says(monkeypatch, CouldNotVerifyError("offsite does not answer"))
    finding = preflight._asked("port 80", preflight._port, subject)
    assert not finding.trouble
    assert "NOT EXERCISED" in finding.note
    alone = preflight._Subject(subject.target, None)
    assert "NOT EXERCISED" in preflight._asked("port 80", preflight._port, alone).note


# --- as a whole -----------------------------------------------------------------------------------------------------


def test_each_moment_asks_what_it_can(monkeypatch, subject):
    asked: list[str] = []
    monkeypatch.setattr(preflight, "offsite_target", lambda *_: None)
    monkeypatch.setattr(preflight, "_asked", lambda name, *_: asked.append(name) or Finding(name, ""))
    found = {}
    for moment in ("first", "rebuild", "daily"):
        asked.clear()
        preflight.preflight(subject.target, moment)
        found[moment] = set(asked)
    assert found["first"] == {"upstream files", "images", "clock", "disk space", "public names", "port 80"}
    assert found["rebuild"] == found["first"] - {"public names", "port 80"}
    assert found["daily"] == found["first"] - {"clock", "disk space"}
    for kind, name in (("s3", "bucket"), ("sftp", "storage box")):
        setattr(subject.target.settings.offsite, kind, f"a {name}")
        asked.clear()
        preflight.preflight(subject.target, "rebuild")
        assert name in asked


def test_what_is_not_met_is_named_with_its_reason():
    well = [Finding("clock", "", note="not synchronised yet"), Finding("images", "")]
    assert preflight.demand(well) == "clock: not synchronised yet"
    with pytest.raises(MinipcError, match="images: the token is expired"):
        preflight.demand([*well, Finding("images", "", trouble="the token is expired")])


def test_a_rebuild_that_could_not_get_an_image_revokes_nothing(monkeypatch, tmp_path):
    """The lost machine's key stays: the fence is after the preflight."""
    monkeypatch.setattr("minipc.evidence.run.REPORTS", tmp_path)
    monkeypatch.setattr("minipc.evidence.run.RECORDS", tmp_path / "records")
    target = SimpleNamespace(alias="mini")
    for name, stub in {
        "adopt": lambda *_: None,
        "the_target": lambda *_: target,
        "held": lambda *_: nullcontext(),
        "begin": lambda *_: None,
        "go_on_without_state": lambda *_: None,
        "shorten_the_ttl": lambda *_: None,
        "preflight": lambda *_: [Finding("images", "", trouble="the token is expired")],
        "fence": lambda *_: pytest.fail("the key was revoked"),
    }.items():
        monkeypatch.setattr(rebuild, name, stub)
    run, failures = rebuild.Run("rebuild"), []
    phases = rebuild._phases(run, LAB, ("mini", {}), "SHA256:x", rebuild.AS_USUAL, failures)
    assert next(phases) is rebuild.phases.ADOPT
    with pytest.raises(rebuild.PhaseFailedError, match="the token is expired"):
        next(phases)
