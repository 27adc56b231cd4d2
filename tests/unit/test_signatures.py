"""Signatures of images: which count, that a release without one is refused, and what the cluster admits."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from minipc.config.service import Service
from minipc.config.services import read_file
from minipc.core import polling, yaml_text
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError, RefusedError
from minipc.gitops import admitted_images, contract, signing, smoke, trial
from minipc.gitops import application as argocd
from minipc.gitops.deploy_files import Version
from minipc.pyinfra_ext.facts.k3s import ImagePolicies
from minipc.pyinfra_ext.operations import k3s as operations
from minipc.services import image_policy, images, namespace, registry, signatures
from minipc.services.manifests import Image, objects
from minipc.services.registry import MissingSignatureError, Signature
from playbooks import argocd_sync, release
from playbooks import release_steps as steps
from tests.unit.cosign import Signer
from tests.unit.gitops_cluster import NAME, OVERLAY, SHOP, DeployRepository, FakeCluster, application
from tests.unit.service_files import TINY, service, settings
from tests.unit.test_gitops_release import Desk, succeeded

IMAGE = "registry.example/shop"
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    made = Signer()
    made.write(tmp_path / "shop.pub")
    return made


@pytest.fixture
def shop(tmp_path: Path, signer: Signer) -> Service:
    return SHOP.model_copy(update={"image_signer": "shop.pub", "folder": str(tmp_path), "smoke": []})


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Signature]]:
    """What the registry has as signatures, by name and digest."""
    stored: dict[str, list[Signature]] = {}

    def signatures_of(_: object, image: str, digest: str) -> list[Signature]:
        if f"{image}@{digest}" not in stored:
            raise MissingSignatureError(f"{image}@{digest} is not signed")
        return stored[f"{image}@{digest}"]

    monkeypatch.setattr(registry, "signatures_of", signatures_of)
    return stored


# --- which signatures count ---------------------------------------------------------------------------------------


def test_a_signature_of_the_key_for_this_image_counts(signer: Signer) -> None:
    signatures.demand(signer.key.public_key(), [signer.sign(IMAGE, ONE)], IMAGE, ONE)


def test_one_of_several_is_enough(signer: Signer) -> None:
    found = [Signer().sign(IMAGE, ONE), signer.sign(IMAGE, TWO), signer.sign(IMAGE, ONE)]
    signatures.demand(signer.key.public_key(), found, IMAGE, ONE)


@pytest.mark.parametrize(
    ("image", "written"),
    [
        ("docker.io/you/shop", "index.docker.io/you/shop"),
        ("you/shop", "index.docker.io/you/shop"),
        ("shop", "index.docker.io/library/shop"),
        ("docker.io/shop", "index.docker.io/library/shop"),
        ("localhost:5000/shop", "localhost:5000/shop"),
    ],
)
def test_the_names_of_docker_hub_are_one(signer: Signer, image: str, written: str) -> None:
    signatures.demand(signer.key.public_key(), [signer.sign(written, ONE)], image, ONE)


@pytest.mark.parametrize("other", ["registry.example/other", "evil.example/shop", "", f"{IMAGE}/x", "shop", None, 5])
def test_a_signature_for_another_repository_does_not(signer: Signer, other: Any) -> None:
    with pytest.raises(RefusedError, match="another repository"):
        signatures.demand(signer.key.public_key(), [signer.sign(other, ONE)], IMAGE, ONE)


def test_a_signature_of_another_digest_does_not(signer: Signer) -> None:
    with pytest.raises(RefusedError, match="it is of another image"):
        signatures.demand(signer.key.public_key(), [signer.sign(IMAGE, TWO)], IMAGE, ONE)


def test_a_signature_of_another_key_does_not(signer: Signer) -> None:
    with pytest.raises(RefusedError, match="it is of another key"):
        signatures.demand(signer.key.public_key(), [Signer().sign(IMAGE, ONE)], IMAGE, ONE)


def test_a_payload_that_was_changed_does_not(signer: Signer) -> None:
    found = signer.sign(IMAGE, TWO)
    changed = dataclasses.replace(found, payload=found.payload.replace(TWO.encode(), ONE.encode()))
    with pytest.raises(RefusedError, match="it is of another key"):
        signatures.demand(signer.key.public_key(), [changed], IMAGE, ONE)


@pytest.mark.parametrize("text", ["", "!", "AAAA", "ü", "=" * 1000])
def test_what_is_no_signature_does_not(signer: Signer, text: str) -> None:
    found = dataclasses.replace(signer.sign(IMAGE, ONE), signature=text)
    with pytest.raises(RefusedError, match="no valid signature"):
        signatures.demand(signer.key.public_key(), [found], IMAGE, ONE)


@pytest.mark.parametrize("payload", [None, [], "x", {}, {"critical": None}, {"critical": {"type": "x"}}, 5])
def test_a_signed_text_of_another_kind_does_not(signer: Signer, payload: object) -> None:
    with pytest.raises(RefusedError, match="payload is not what cosign signs"):
        signatures.demand(signer.key.public_key(), [signer.sign_payload(payload)], IMAGE, ONE)


def test_a_signature_of_something_else_than_an_image_does_not(signer: Signer) -> None:
    with pytest.raises(RefusedError, match="not made for an image"):
        signatures.demand(signer.key.public_key(), [signer.sign(IMAGE, ONE, "atomic container signature")], IMAGE, ONE)


def test_nothing_at_all_does_not(signer: Signer) -> None:
    with pytest.raises(RefusedError, match="nothing that is stored as a signature is one"):
        signatures.demand(signer.key.public_key(), [], IMAGE, ONE)


@pytest.mark.parametrize(
    "reference",
    [IMAGE, f"{IMAGE}:v1", f"{IMAGE}:v1@{ONE}", f"{IMAGE}@sha256:1", f"{IMAGE}@{ONE} x", f"{IMAGE}@{ONE.upper()}", ""],
)
def test_an_image_without_a_digest_alone_is_refused(reference: str) -> None:
    with pytest.raises(RefusedError, match="not named by its digest alone"):
        signatures.split(reference)
    assert signatures.split(f"localhost:5000/shop@{ONE}") == ("localhost:5000/shop", ONE)


# --- the key of the service file ----------------------------------------------------------------------------------


def _pem(key: Any) -> bytes:
    found: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ssh-ed25519 AAAA",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        _pem(ed25519.Ed25519PrivateKey.generate().public_key()),
        _pem(ec.generate_private_key(ec.SECP384R1()).public_key()),
    ],
)
def test_a_key_of_another_kind_is_refused(shop: Service, content: bytes) -> None:
    shop.beside("shop.pub").write_bytes(content)
    with pytest.raises(ConfigError, match="image_signer") as caught:
        signatures.public_key(shop)
    assert "ECDSA P-256" in caught.value.next_step


def test_the_file_of_the_key_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("image: registry.example/tiny\nimage_signer: tiny.pub\nprocesses: {main: {}}\n")
    with pytest.raises(ConfigError, match=r"image_signer: .*tiny\.pub does not exist"):
        read_file(path)
    Signer().write(tmp_path / "tiny.pub")
    assert read_file(path).image_signer == "tiny.pub"


@pytest.mark.parametrize("changes", [{"build": "image"}, {"image": "minipc.local/tiny"}])
def test_an_image_that_is_built_here_has_no_signer(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="image_signer"):
        service(TINY, image_signer="tiny.pub", **changes)


# --- what the registry says ---------------------------------------------------------------------------------------


def _manifest(*layers: dict[str, Any], **config: Any) -> str:
    small = {"digest": ONE, "size": 10} | config
    return json.dumps({"config": small, "layers": [{"digest": TWO, "size": 10, **each} for each in layers]})


def test_only_layers_with_a_signature_are_read() -> None:
    signed = {"annotations": {registry.SIGNATURE: "x"}}
    found = registry._signature_layers(_manifest(signed, {}, {"annotations": None}), "x.sig")
    assert found == [{"digest": TWO, "size": 10, **signed}]


@pytest.mark.parametrize(
    "raw",
    [
        *("", "[]", "{}", "null", "[" * 5000, '{"config": {}, "layers": [5]}'),
        _manifest(size=10**9),
        _manifest({"size": 70000}),
        _manifest({"size": -1}),
        _manifest({"size": "10"}),
        _manifest({"digest": "../../etc/passwd"}),
        _manifest(digest="sha256:1"),
        _manifest({"annotations": 5}),
        _manifest(*[{}] * 200),
    ],
)
def test_a_manifest_that_cosign_does_not_write_is_refused_before_anything_is_fetched(
    raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(registry, "_skopeo", lambda _settings, _reference, argv: asked.append(argv) or raw)
    with pytest.raises(MinipcError, match=r"not what cosign writes|larger than signatures are"):
        registry.signatures_of(None, IMAGE, ONE)  # type: ignore[arg-type]
    assert [argv[0] for argv in asked] == ["inspect"]
    assert asked[0][-1] == f"docker://{IMAGE}:sha256-{'1' * 64}.sig"


def test_an_answer_that_is_not_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "skopeo"
    program.write_text("#!/bin/sh\nprintf '{\\377}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(registry.prerequisites, "ensure_container_tools", lambda: None)
    with pytest.raises(MinipcError, match="not what cosign writes"):
        registry.signatures_of(settings(), IMAGE, ONE)


# --- releases -----------------------------------------------------------------------------------------------------


class Listing(FakeCluster):
    """A cluster with the list of admitted images."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(state)
        self.lists: list[dict[str, Any]] = []
        self.listed = ""
        # How many times the policy denies after a change of the list.
        self.lag = 0

    def _kubectl(self, argv: list[str], stdin: bytes) -> str:
        match argv:
            case ["get", "configmap", name, "-n", "kube-system", *_]:
                assert name == f"minipc-images-{NAME}"
                return self.listed
            case ["apply", "--server-side", *_]:
                self.lists.append(json.loads(stdin))
                self.listed = stdin.decode()
                return ""
            case ["create", "--dry-run=server", *_]:
                pod = json.loads(stdin)
                assert pod["metadata"]["namespace"] == NAME
                wanted = [each["image"] for each in pod["spec"]["containers"]]
                self.lag -= 1
                if self.lag >= 0 or not set(wanted) <= set(json.loads(self.listed)["data"].values()):
                    raise CouldNotVerifyError(
                        'mini: `create` failed: Error from server (Forbidden): pods "minipc-images" is forbidden: '
                        f"ValidatingAdmissionPolicy 'minipc-images-{NAME}' with binding 'x' denied request"
                    )
                return ""
        return super()._kubectl(argv, stdin)

    @property
    def admitted(self) -> list[dict[str, str]]:
        return [each["data"] for each in self.lists]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "find", lambda *_: None)
    for module in (argocd, steps, trial, smoke, polling):
        monkeypatch.setattr(module.time, "sleep", lambda _: None)  # type: ignore[attr-defined]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeployRepository:
    made = DeployRepository(tmp_path)
    monkeypatch.setattr(signing, "signing_key", lambda environment: made.key)
    return made


def push(remote: DeployRepository, shop: Service, digest: str, *, reference: str = "") -> str:
    """Commit the manifests of a release, as CI or `minipc release set` leave them."""
    found = objects(shop, "lab", Image(reference or f"{IMAGE}@{digest}", "v1", digest))
    remote.push(2, service=shop)
    return remote.push_objects(found, f"release {digest[:9]}")


@pytest.fixture
def desk(remote: DeployRepository, shop: Service, tmp_path: Path, stored: dict[str, list[Signature]]) -> Desk:
    """A machine that runs ONE, with TWO pending; nothing is signed."""
    first = push(remote, shop, ONE)
    push(remote, shop, TWO)
    cluster = Listing(application(first))
    cluster.outcome = lambda revision: succeeded(revision, first)
    made = Desk(remote, cluster, tmp_path, service=shop)
    verify = signatures.verifier(settings())
    made.context = dataclasses.replace(made.context, signed=verify)
    return made


def test_a_release_of_an_unsigned_image_is_refused_before_anything_runs(desk: Desk, shop: Service) -> None:
    with pytest.raises(RefusedError, match=f"{IMAGE}@{TWO} is not signed"):
        release.sync(desk.context, shop)
    assert desk.questions == []
    assert desk.cluster.created == []
    assert desk.cluster.operations == []
    assert desk.cluster.lists == []  # type: ignore[attr-defined]
    assert release.status(desk.context, shop) == 3
    assert "REFUSED" in desk.text


def test_a_commit_that_nobody_signed_does_not_choose_which_registry_is_asked(
    remote: DeployRepository, shop: Service, tmp_path: Path
) -> None:
    first = push(remote, shop, ONE)
    found = objects(shop, "lab", Image(f"evil.example/shop@{TWO}", "v1", TWO))
    text = yaml.dump_all(found, Dumper=yaml_text.DUMPER)
    remote.push_files({f"{OVERLAY}/objects.yaml": text}, "planted", sign=False)
    desk = Desk(remote, Listing(succeeded(first)), tmp_path, service=shop)
    desk.context = dataclasses.replace(desk.context, signed=lambda *_: pytest.fail("asked"))
    assert release.status(desk.context, shop) == 3
    assert "is not signed by anybody" in desk.text


def test_the_status_of_what_was_verified_needs_no_registry(
    remote: DeployRepository, shop: Service, tmp_path: Path
) -> None:
    head = push(remote, shop, ONE)
    cluster = Listing(succeeded(head))
    desk = Desk(remote, cluster, tmp_path, service=shop)
    desk.context = dataclasses.replace(desk.context, signed=lambda *_: pytest.fail("asked"))
    admitted_images.settle(cluster, shop, [f"{IMAGE}@{ONE}"])
    assert release.status(desk.context, shop) == 0


def test_a_signed_image_is_admitted_before_it_starts_and_kept_afterwards(
    desk: Desk, shop: Service, signer: Signer, stored: dict[str, list[Signature]]
) -> None:
    stored[f"{IMAGE}@{TWO}"] = [signer.sign(IMAGE, TWO)]
    cluster = desk.cluster
    assert isinstance(cluster, Listing)
    admitted_images.settle(cluster, shop, [f"{IMAGE}@{ONE}"])
    cluster.lists.clear()
    create = cluster.create

    def note(manifest: dict[str, Any]) -> None:
        assert f"{IMAGE}@{TWO}" in cluster.admitted[-1].values(), "the canary would be denied"
        create(manifest)

    cluster.create = note  # type: ignore[method-assign]
    assert release.sync(desk.context, shop) == 0
    assert cluster.created
    first, last = cluster.admitted
    assert first == {"released.000": f"{IMAGE}@{ONE}", "next.000": f"{IMAGE}@{TWO}"}
    assert last == {"released.000": f"{IMAGE}@{TWO}", "before.000": f"{IMAGE}@{ONE}"}
    assert cluster.lists[-1]["metadata"]["namespace"] == "kube-system"


def test_a_list_that_the_cluster_does_not_know_yet_is_waited_for(shop: Service) -> None:
    cluster = Listing(application())
    cluster.lag = 3
    admitted_images.admit(cluster, shop, [f"{IMAGE}@{ONE}"])
    assert sum("--dry-run=server" in each for each in cluster.commands) == 4


def test_a_policy_that_goes_on_denying_ends_the_release(shop: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admitted_images, "EFFECT_S", 0.0)
    cluster = Listing(application())
    cluster.lag = 10**6
    with pytest.raises(CouldNotVerifyError, match="still denies verified images of shop"):
        admitted_images.admit(cluster, shop, [f"{IMAGE}@{ONE}"])


def test_a_failed_release_leaves_what_ran_admitted(
    desk: Desk, shop: Service, signer: Signer, stored: dict[str, list[Signature]]
) -> None:
    stored[f"{IMAGE}@{TWO}"] = [signer.sign(IMAGE, TWO)]
    cluster = desk.cluster
    assert isinstance(cluster, Listing)
    admitted_images.settle(cluster, shop, [f"{IMAGE}@{ONE}"])
    cluster.pod_status = {"phase": "Failed"}
    assert release.sync(desk.context, shop) == 1
    assert f"{IMAGE}@{ONE}" in cluster.admitted[-1].values()


def test_a_rollback_needs_no_registry_for_what_was_verified(
    desk: Desk, shop: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = desk.cluster
    assert isinstance(cluster, Listing)
    admitted_images.settle(cluster, shop, [f"{IMAGE}@{ONE}"])

    def down(*_: object) -> list[Signature]:
        raise CouldNotVerifyError("the registry does not answer")

    monkeypatch.setattr(registry, "signatures_of", down)
    wanted = objects(shop, "lab", Image(f"{IMAGE}@{ONE}", "v1", ONE))
    assert steps.demand_signed(desk.context, shop, wanted, listed_count=True) == [f"{IMAGE}@{ONE}"]
    with pytest.raises(CouldNotVerifyError):
        steps.demand_signed(desk.context, shop, wanted)
    # With another key in the service file, what the former key signed does not count.
    Signer().write(shop.beside("shop.pub"))
    with pytest.raises(CouldNotVerifyError):
        steps.demand_signed(desk.context, shop, wanted, listed_count=True)


def test_what_runs_already_is_admitted_once_it_is_verified(
    desk: Desk,
    remote: DeployRepository,
    shop: Service,
    signer: Signer,
    stored: dict[str, list[Signature]],
    tmp_path: Path,
) -> None:
    """A signer is new in the service file: the list is made before the policy comes with the next converge."""
    stored[f"{IMAGE}@{TWO}"] = [signer.sign(IMAGE, TWO)]
    head = desk.repository.head
    cluster = Listing(succeeded(head))
    again = Desk(remote, cluster, tmp_path, service=shop)
    again.context = dataclasses.replace(again.context, signed=signatures.verifier(settings()))
    assert release.sync(again.context, shop) == 0
    assert "the cluster admits 1 verified image" in again.text
    assert cluster.admitted == [{"released.000": f"{IMAGE}@{TWO}"}]
    again.context = dataclasses.replace(again.context, signed=lambda *_: pytest.fail("asked again"))
    assert release.sync(again.context, shop) == 0
    assert len(cluster.lists) == 1


def test_a_release_by_tag_is_refused(shop: Service) -> None:
    with pytest.raises(RefusedError, match="has no digest, and a signature is of a digest"):
        contract.demand(shop, objects(shop, "lab", Image(f"{IMAGE}:v1", "v1", ONE)))
    contract.demand(SHOP, objects(SHOP, "lab", Image(f"{IMAGE}:v1", "v1", ONE)))


def test_a_release_by_tag_and_digest_is_refused(shop: Service, stored: dict[str, list[Signature]]) -> None:
    """The name that is verified is the name that the cluster admits, so there is one spelling."""
    wanted = objects(shop, "lab", Image(f"{IMAGE}:v1@{ONE}", "v1", ONE))
    with pytest.raises(RefusedError, match="not named by its digest alone"):
        admitted_images.verify(shop, wanted, signatures.verifier(settings()))


def test_images_of_all_containers_and_volumes_are_verified(shop: Service) -> None:
    wanted = objects(shop, "lab", Image(f"{IMAGE}@{ONE}", "v1", ONE))
    pod = next(each for each in wanted if each["kind"] == "Deployment")["spec"]["template"]["spec"]
    pod["initContainers"] = [{"image": f"evil.example/x@{TWO}"}]
    pod["ephemeralContainers"] = [{"image": f"evil.example/z@{TWO}"}]
    pod["volumes"] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "none", "image": None},
        {"name": "tools", "image": {"reference": f"evil.example/y@{TWO}"}},
    ]
    seen: list[str] = []
    admitted_images.verify(shop, wanted, lambda _, image: seen.append(image))
    assert seen == [*(f"evil.example/{name}@{TWO}" for name in "xyz"), f"{IMAGE}@{ONE}"]


def test_a_version_is_committed_only_if_it_is_signed(
    desk: Desk, shop: Service, signer: Signer, stored: dict[str, list[Signature]]
) -> None:
    before = desk.repository.head
    with pytest.raises(RefusedError, match="is not signed"):
        release.set_version(desk.context, shop, Version(IMAGE, "", ONE, "v2"))
    assert desk.repository.head == before
    stored[f"{IMAGE}@{ONE}"] = [signer.sign(IMAGE, ONE)]
    assert release.set_version(desk.context, shop, Version(IMAGE, "", ONE, "v2")) == 0
    assert desk.repository.head != before


def test_nothing_unsigned_is_pinned(desk: Desk, shop: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = objects(shop, "lab", Image(f"{IMAGE}@{ONE}", "v1", ONE))
    monkeypatch.setattr(argocd_sync, "_paths", lambda *_: {NAME: "shop/lab"})
    monkeypatch.setattr(argocd_sync, "compare", lambda *_: (release.difference([], wanted), wanted))
    with pytest.raises(RefusedError, match="is not signed"):
        argocd_sync.pin(desk.context, "root/lab", [shop])
    assert desk.questions == []


def test_a_context_without_a_registry_verifies_nothing(desk: Desk, shop: Service) -> None:
    bare = dataclasses.replace(desk.context, signed=steps._cannot_verify)
    with pytest.raises(CouldNotVerifyError, match="cannot be verified here"):
        release.sync(bare, shop)


def test_a_service_without_a_signer_asks_neither_registry_nor_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "signatures_of", lambda *_: pytest.fail("asked"))
    signatures.verifier(settings())(SHOP, f"{IMAGE}@{ONE}")
    cluster = Listing(application())
    admitted_images.admit(cluster, SHOP, [])
    admitted_images.settle(cluster, SHOP, [])
    assert cluster.commands == []


# --- the cluster's policy -----------------------------------------------------------------------------------------


def test_the_policy_belongs_to_the_machine_and_denies_without_a_list(shop: Service) -> None:
    found = {each["kind"]: each for each in namespace.objects(shop, settings(shop))}
    policy, binding = found["ValidatingAdmissionPolicy"]["spec"], found["ValidatingAdmissionPolicyBinding"]["spec"]
    assert policy["failurePolicy"] == "Fail"
    (rule,) = policy["matchConstraints"]["resourceRules"]
    assert rule["resources"] == ["pods", "pods/ephemeralcontainers"]
    assert rule["operations"] == ["CREATE", "UPDATE"]
    assert binding["policyName"] == found["ValidatingAdmissionPolicy"]["metadata"]["name"]
    assert binding["paramRef"] == {
        "name": "minipc-images-shop",
        "namespace": "kube-system",
        "parameterNotFoundAction": "Deny",
    }
    assert binding["validationActions"] == ["Deny"]
    assert binding["matchResources"]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAME}
    for kind in ("containers", "initContainers", "ephemeralContainers", "volumes"):
        for pod in ("object", "oldObject"):
            assert f"has({pod}.spec.{kind})" in json.dumps(policy)


def test_no_signer_no_policy() -> None:
    assert image_policy.objects(SHOP) == []


def test_no_application_may_touch_policy_or_list(shop: Service) -> None:
    """The deploy repository of a service may hold neither of the kinds, and nothing in another namespace."""
    from minipc.gitops import policy

    listed = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "minipc-images-shop", "namespace": image_policy.NAMESPACE},
    }
    for each in [*image_policy.objects(shop), listed]:
        for application_name in (NAME, policy.ROOT, policy.SYSTEM):
            assert list(policy.violations(application_name, [each], "ssh://git@example.org/deploy.git")), each


def test_the_signature_is_base64_of_der(signer: Signer) -> None:
    """As cosign writes it; a raw signature of 64 bytes would be another format."""
    assert base64.b64decode(signer.sign(IMAGE, ONE).signature)[0] == 0x30


def test_a_service_without_a_signer_loses_its_policy_and_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    host = SimpleNamespace(get_fact=lambda fact: ["shop", "other"] if fact is ImagePolicies else [])
    monkeypatch.setattr(operations.context, "host", host)
    commands = [str(each) for each in operations.image_policies_removed._inner(kept=["other"])]
    assert len(commands) == 2
    assert "validatingadmissionpolicybinding,validatingadmissionpolicy minipc-images-shop" in commands[0]
    assert "configmap minipc-images-shop -n kube-system" in commands[1]


def test_the_services_with_a_policy_are_asked_for_by_label() -> None:
    command = ImagePolicies().command()
    assert "managed-by=minipc" in command
    assert r"{.items[*].metadata.labels.app\.kubernetes\.io/part-of}" in command
    assert ImagePolicies().process(["shop other"]) == ["shop", "other"]
