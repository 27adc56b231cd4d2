"""What somebody gets who can write to the deploy repository: nothing is synced that a person has not approved."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess

import pytest
import yaml

from minipc.core.environment import LAB
from minipc.core.errors import ConfigError, MinipcError, RefusedError
from minipc.core.formatting import plain
from minipc.core.paths import ROOT
from minipc.gitops import deploy_files, git, policy, signing
from minipc.gitops.render import difference, render
from minipc.gitops.tree import Tree, demand_closed, read
from playbooks import release
from tests.unit.gitops_cluster import NAME, OVERLAY, DeployRepository, FakeCluster, application, manifests_of, new_key
from tests.unit.test_gitops_release import Desk, of, succeeded

ADDRESS = "ssh://git@example.org/deploy.git"
BINDING = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: helper}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects:
- {kind: ServiceAccount, name: default, namespace: argocd}
"""


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = DeployRepository(tmp_path)
    monkeypatch.setattr(signing, "signing_key", lambda environment: made.key)
    return made


@pytest.fixture
def good(remote):
    return remote.push(2)


@pytest.fixture
def desk(remote, good, tmp_path):
    """A machine that runs `good`; `refused` looks at what is in the repository now."""
    cluster = FakeCluster(application(good))
    cluster.outcome = lambda revision: succeeded(revision, good)

    def made() -> Desk:
        return Desk(remote, cluster, tmp_path)

    return made


def refused(desk, words: str) -> Desk:
    """Every way to sync refuses with exit code 3; nothing is asked, nothing reaches the cluster."""
    found = desk()
    with pytest.raises(RefusedError, match=words) as error:
        release.sync(*of(found))
    assert error.value.exit_code == 3
    assert error.value.next_step
    assert not found.questions
    assert not found.cluster.operations
    assert release.status(*of(found)) == 3
    return found


# --- signatures ------------------------------------------------------------------------------------------------------


def test_an_unsigned_commit_is_refused_and_its_content_is_shown(remote, desk):
    bad = remote.push(3, sign=False)
    found = refused(desk, f"{bad[:12]}.* is not signed by anybody")
    assert "+  replicas: 3" in found.text


def test_a_commit_signed_by_a_stranger_is_refused(remote, desk):
    remote.push(3, key=new_key())
    refused(desk, "is not signed by anybody")


def test_a_signed_commit_on_top_of_an_unsigned_one_is_refused(remote, desk):
    """CI, or anybody who may sign, has built on it without looking."""
    bad = remote.push(3, sign=False)
    remote.push(4)
    refused(desk, bad[:12])


def test_an_unsigned_side_branch_that_was_merged_is_refused(remote, desk, good):
    remote.git("checkout", "-q", "-b", "side")
    (remote.work / "other").write_text("x")
    remote.git("add", ".")
    remote.git("commit", "-q", "--no-gpg-sign", "-m", "side")
    bad = remote.git("rev-parse", "HEAD")
    remote.git("checkout", "-q", "-B", "main", good)
    with signing.key_file(remote.key) as file:
        signed = ["-c", "gpg.format=ssh", "-c", f"user.signingKey={file}", "merge", "-q", "--no-ff", "-S"]
        remote.git(*signed, "-m", "merge", "side")
    remote.git("push", "-q", "origin", "HEAD:main")
    refused(desk, bad[:12])


def test_the_signature_of_another_commit_is_no_signature(remote, desk, good):
    remote.push(3, sign=False)
    raw = remote.git("cat-file", "commit", "HEAD") + "\n"
    signature = re.search(r"^gpgsig .*?END SSH SIGNATURE-----$", remote.git("cat-file", "commit", good), re.M | re.S)
    header, _, body = raw.partition("\n\n")
    forged = f"{header}\n{signature[0]}\n\n{body}"
    made = subprocess.run(
        ["git", "-C", remote.work, "hash-object", "-t", "commit", "-w", "--stdin"],
        input=forged,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.strip()
    remote.git("push", "-q", "--force", "origin", f"{made}:refs/heads/main")
    refused(desk, made[:12])


def test_a_commit_with_two_signatures_is_refused():
    one = b"gpgsig -----BEGIN SSH SIGNATURE-----\n AAAA\n -----END SSH SIGNATURE-----\n"
    head = b"tree x\nauthor a\ncommitter c\n"
    payload, signature = signing.split(head + one + b"\nbody\n")
    assert payload == head + b"\nbody\n"
    assert signature.startswith(b"-----BEGIN SSH SIGNATURE-----\nAAAA\n")
    for wrong in (one + one, b"", one + one.replace(b"gpgsig", b"gpgsig-sha256")):
        with pytest.raises(MinipcError, match="signatures"):
            signing.split(head + wrong + b"\nbody\n")


def test_a_signer_whose_time_is_over_cannot_date_a_commit_back(remote, desk, monkeypatch):
    """Git asks whether the key was valid when the commit says it was made; its author chooses that."""
    old = new_key()
    remote.allow(old, "former", ',valid-before="20250101"')
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_DATE", "2024-06-01T12:00:00Z")
    bad = remote.push(3, key=old)
    signers = {"gpg.ssh.allowedSignersFile": str(remote.signers)}
    git.run(remote.work, "verify-commit", bad, settings=signers)  # Git alone is content
    refused(desk, f"{bad[:12]}.* is not signed by anybody")


def test_a_signer_who_is_valid_now_may_sign(remote, desk):
    ci = new_key()
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    remote.allow(ci, "ci", f',valid-before="{soon:%Y%m%d}"')
    remote.push(3, key=ci)
    assert release.sync(*of(desk())) == 0


def test_a_signer_who_was_removed_is_refused(remote, desk):
    ci = new_key()
    remote.allow(ci)
    remote.push(3, key=ci)
    remote.signers.write_text(signing.signer_line(remote.key) + "\n")
    refused(desk, "is not signed by anybody")


def test_a_signature_for_something_else_is_refused(remote, desk):
    """A key that may sign files only (another namespace) signs no commit."""
    other = new_key()
    with remote.signers.open("a") as file:
        file.write(signing.signer_line(other).replace('"git"', '"file"').replace(signing.SELF, "files") + "\n")
    remote.push(3, key=other)
    refused(desk, "is not signed by anybody")


@pytest.mark.parametrize("content", ["", None])
def test_without_signers_nothing_is_synced(remote, desk, content):
    remote.push(3)
    if content is None:
        remote.signers.unlink()
    else:
        remote.signers.write_text(content)
    refused(desk, "contains no allowed signer")


def test_no_configuration_changes_what_a_signature_means(remote, desk, tmp_path, monkeypatch):
    """Not the user's, not the clone's, not the environment's; no hook runs either."""
    program = tmp_path / "yes"
    program.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/RAN\necho 'Good \"git\" signature for ci with ED25519 key SHA256:x'\n"
    )
    program.chmod(0o755)
    hostile = tmp_path / "gitconfig"
    hostile.write_text(
        f'[gpg]\n format = ssh\n program = {program}\n[gpg "ssh"]\n program = {program}\n'
        f" allowedSignersFile = {tmp_path}/theirs\n[core]\n hooksPath = {tmp_path}\n fsmonitor = {program}\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(hostile))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(hostile))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'gpg.ssh.program={program}'")
    shutil.copy(program, tmp_path / "reference-transaction")
    bad = remote.push(3, sign=False)
    (tmp_path / "RAN").unlink(missing_ok=True)
    found = desk()
    with (tmp_path / "clone/.git/config").open("a") as file:
        file.write(hostile.read_text())
    with pytest.raises(RefusedError, match=bad[:12]):
        found.repository.admit(bad)
    assert not (tmp_path / "RAN").exists()


# --- history ---------------------------------------------------------------------------------------------------------


def test_rewritten_history_is_refused_even_when_it_is_signed(remote, desk, good):
    remote.git("checkout", "-q", "--orphan", "other")
    remote.push(3)
    found = refused(desk, f"is not based on {good[:12]}")
    assert "minipc release rollback" in str(found.text) + release_next(found)


def release_next(found: Desk) -> str:
    return str(release.look(*of(found)).refused)


def test_an_older_state_that_was_put_back_is_refused(remote, tmp_path):
    first, second = remote.push(2), remote.push(3)
    desk = Desk(remote, FakeCluster(application(second)), tmp_path)
    remote.approve(second)
    remote.bare_git("update-ref", "refs/heads/main", first)
    refused(lambda: again(remote, desk), f"{first[:12]} is not based on {second[:12]}")


def again(remote, desk: Desk) -> Desk:
    desk.context = release.Context(LAB, desk.cluster, remote.clone(), desk.lines.append, desk.ask)
    return desk


def test_a_commit_approved_for_one_application_is_not_approved_for_another(remote, tmp_path):
    """Whoever approved a release has not looked at ArgoCD's own manifest in the same commit."""
    first, second = remote.push(2), remote.push(3)
    remote.approve(first)
    remote.approve(second, NAME)
    repository = remote.clone()
    assert repository.admit_approved("argocd") == first
    assert repository.admit_approved(NAME) == second
    with pytest.raises(
        RefusedError, match=f"is not based on {second[:12]}, the commit that was approved last for {NAME}"
    ):
        repository.admit(first)


def test_a_rollback_builds_on_nothing_that_is_not_signed(remote, desk, good):
    remote.push(3, sign=False)
    found = desk()
    before = remote.bare_git("rev-parse", "main")
    with pytest.raises(RefusedError, match="is not signed"):
        release.rollback(*of(found), good)
    assert remote.bare_git("rev-parse", "main") == before


def test_a_tag_that_somebody_set_is_not_gone_back_to(remote, desk, good):
    """Whoever can push can set the tags that say what passed."""
    remote.push(3)
    remote.git("checkout", "-q", "--orphan", "evil")
    (remote.work / "x").write_text("x")
    remote.git("add", ".")
    remote.git("commit", "-q", "-m", "evil")
    remote.git("push", "-q", "origin", "HEAD:refs/tags/release/lab/shop/29990101T000000Z")
    evil = remote.git("rev-parse", "HEAD")
    found = desk()
    with pytest.raises(RefusedError, match="no earlier release"):
        release.rollback(*of(found))
    with pytest.raises(RefusedError, match="not part of the history"):
        release.rollback(*of(found), evil)
    assert not found.cluster.operations


def test_what_minipc_commits_itself_is_signed_and_admitted(remote, desk, good):
    remote.push(3)
    found = desk()
    made = found.repository.restore(good, OVERLAY, "Roll back")
    written = found.repository.write("x.yaml", "x: 1\n", "Write")
    for commit in (made, written, found.repository.approve()):
        found.repository.admit(commit)
    assert "gpgsig -----BEGIN SSH SIGNATURE-----" in remote.bare_git("cat-file", "commit", made)


def test_a_release_approves_its_commit_and_a_failed_one_does_not(remote, desk, good):
    second = remote.push(3)
    found = desk()
    assert release.sync(*of(found)) == 0
    assert remote.approvals.of(NAME) == second
    third = remote.push(4)
    wrong = desk()
    remote.approve(second, NAME)
    state = succeeded(good, good)
    state["status"]["operationState"]["startedAt"] = "2026-11-21T14:00:00Z"
    wrong.cluster.outcome = lambda revision: state
    assert release.sync(*of(wrong)) == 1
    assert f"ArgoCD reports {good[:12]}, not {third[:12]}" in wrong.text
    assert remote.approvals.of(NAME) == second


def test_argocd_is_told_the_whole_hash(remote, desk):
    second = remote.push(3)
    found = desk()
    release.sync(*of(found))
    ((asked),) = found.cluster.operations
    assert asked["sync"]["revision"] == second
    assert re.fullmatch(r"[0-9a-f]{40}", asked["sync"]["revision"])


def test_a_damaged_file_of_approvals_is_no_approval(remote, good):
    remote.approvals.path.write_text('{"deploy": {"shop": "main"}}')
    with pytest.raises(ConfigError, match="restore it from git"):
        remote.clone().admit(good)


# --- a rebuild -------------------------------------------------------------------------------------------------------


def test_a_rebuild_takes_the_approved_commit_and_not_the_newest(remote, good):
    remote.push(3, sign=False)
    remote.approve(good)
    assert remote.clone().admit_approved("argocd") == good


def test_a_rebuild_without_an_approval_refuses(remote, good):
    with pytest.raises(RefusedError, match="no commit of the deploy repository is approved for argocd") as error:
        remote.clone().admit_approved("argocd")
    assert "minipc release pin" in error.value.next_step


def test_a_rebuild_refuses_a_repository_that_lost_what_was_approved(remote, good):
    remote.approve("f" * 40)
    with pytest.raises(RefusedError, match=f"does not contain commit {'f' * 12}"):
        remote.clone().admit_approved("argocd")


def test_a_rebuild_is_not_content_with_a_commit_that_only_its_own_clone_has(remote, good):
    remote.approve(good)
    remote.clone()
    remote.git("checkout", "-q", "--orphan", "other")
    remote.push(3)
    with pytest.raises(RefusedError, match=f"does not contain commit {good[:12]}"):
        remote.clone().admit_approved("argocd")


def test_a_rebuild_refuses_an_approved_commit_whose_signer_was_removed(remote, good):
    remote.approve(good)
    remote.signers.write_text(signing.signer_line(new_key()) + "\n")
    with pytest.raises(RefusedError, match="is not signed"):
        remote.clone().admit_approved("argocd")


def test_a_rebuild_takes_an_approved_commit_whose_signer_has_expired_since(remote):
    """Time alone must not make a recovery impossible; a person approved it while the key was valid."""
    old = new_key()
    tomorrow = datetime.datetime.now() + datetime.timedelta(days=1)
    remote.allow(old, "former", f',valid-before="{tomorrow:%Y%m%d}"')
    made = remote.push(3, key=old)
    remote.approve(made)
    assert remote.clone().admit_approved("argocd") == made


# --- what is built ---------------------------------------------------------------------------------------------------

REMOTE = {
    "an address": "resources: ['https://attacker.example/x.yaml']",
    "plain http": "resources: ['http://127.0.0.1:17779/x.yaml']",
    "a repository": "resources: ['github.com/attacker/base']",
    "a repository by ssh": "resources: ['git@attacker.example:x/y.git']",
    "a repository by file": "resources: ['file:///etc']",
    "a repository with a reference": "resources: ['ssh://git@attacker.example/x?ref=main']",
    "out of the repository": "resources: ['../../../../etc']",
    "an absolute path": "resources: [/etc/minipc]",
    "a component": "components: ['https://attacker.example/x']",
    "a patch": "patches: [{path: 'https://attacker.example/x.yaml'}]",
    "a replacement": "replacements: [{path: 'https://attacker.example/x.yaml'}]",
    "a file of a generator": "configMapGenerator: [{name: x, files: ['a=https://attacker.example/x']}]",
    "a file outside": "configMapGenerator: [{name: x, files: ['a=../../../etc/shadow']}]",
    "an environment file": "configMapGenerator: [{name: x, envs: ['https://attacker.example/x']}]",
    "helm charts": "helmCharts: [{name: x, repo: 'https://attacker.example'}]",
    "generators": "generators: [x.yaml]",
    "transformers": "transformers: [x.yaml]",
    "validators": "validators: [x.yaml]",
    "a schema": "openapi: {path: 'https://attacker.example/x.json'}",
    "definitions": "crds: ['https://attacker.example/x']",
    "settings": "configurations: [x.yaml]",
    "the old name": "bases: ['https://attacker.example/x']",
    "another spelling": "Resources: ['https://attacker.example/x']",
    "another spelling below": "patches: [{Path: 'https://attacker.example/x'}]",
    "a key twice": "resources: ['https://attacker.example/x']\nresources: [objects.yaml]",
    "an alias": "x: &a ['https://attacker.example/x']\nresources: *a",
    "a secret generator": "secretGenerator: [{name: x, files: [a]}]",
    "a second document": "resources: []\n---\nresources: ['https://attacker.example/x']",
    "a list": "- resources",
    "a value in place of a list": "resources: https://attacker.example/x",
}


def not_built(files: dict[str, str]) -> None:
    tree = Tree(dict.fromkeys(files, "100644"), {path: text.encode() for path, text in files.items()})
    with pytest.raises(RefusedError, match="is not built"):
        demand_closed(tree, "f" * 40)


@pytest.mark.parametrize("name", REMOTE)
def test_what_would_come_from_elsewhere_is_refused(name):
    not_built({f"{OVERLAY}/kustomization.yaml": REMOTE[name] + "\n", f"{OVERLAY}/x.yaml": ""})


def test_what_would_come_from_elsewhere_is_refused_before_it_is_built(remote, desk):
    remote.push_files({f"{OVERLAY}/kustomization.yaml": REMOTE["an address"] + "\n"}, "an address")
    before = len(desk().cluster.commands)
    found = refused(desk, "is not built")
    built = [each for each in found.cluster.commands[before:] if each.startswith("systemd-run")]
    assert len(built) == 2, "the state before, once for each look; never the new one"


FILES = {
    ".gitattributes": "* export-subst",
    "argocd/.gitattributes": "install.yaml filter=x",
    ".gitmodules": "[submodule]",
    ".argocd-source.yaml": "kustomize: {}",
    f"{OVERLAY}/.argocd-source-parking.yaml": "helm: {}",
    f"{OVERLAY}/Chart.yaml": "name: x",
    "argocd/x.jsonnet": "{}",
    f"{OVERLAY}/KUSTOMIZATION.yaml": "resources: []",
}


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_changes_how_the_tree_is_read_is_refused(path):
    not_built({path: FILES[path]})


def test_a_file_of_attributes_is_not_built(remote, desk):
    remote.push_files({".gitattributes": "* export-subst"}, "attributes")
    refused(desk, "is not built")


def test_links_and_submodules_are_refused(remote, good):
    (remote.work / "shadow").symlink_to("/etc/shadow")
    (remote.work / OVERLAY / "up").symlink_to("../..")
    linked = remote.push_files({}, "links")
    with pytest.raises(
        RefusedError, match=r"shadow: a symbolic link(.|\n)*up: a symbolic link|up: a symb(.|\n)*shadow"
    ):
        demand_closed(read(remote.work, linked), linked)
    remote.git("update-index", "--add", "--cacheinfo", f"160000,{good},vendor")
    remote.git("commit", "-q", "-m", "submodule")
    made = remote.git("rev-parse", "HEAD")
    assert any("vendor: a submodule" in each for each in read(remote.work, made).problems())


def test_a_tree_that_is_too_large_is_refused(remote, monkeypatch):
    made = remote.push_files({f"big/{number}": "x" for number in range(20)}, "many")
    monkeypatch.setattr("minipc.gitops.tree.MAX_FILES", 10)
    with pytest.raises(RefusedError, match="more than 10 files"):
        read(remote.work, made)


def test_the_tree_is_what_was_committed_whatever_attributes_say(remote):
    """`git archive` would leave out the first and rewrite the second."""
    made = remote.push_files(
        {".gitattributes": "hidden export-ignore\nshown export-subst\n", "hidden": "evil", "shown": "$Format:%H$"}, "x"
    )
    files = read(remote.work, made).files
    assert (files["hidden"], files["shown"]) == (b"evil", b"$Format:%H$")


def test_the_build_has_no_network_and_no_rights(remote, good):
    cluster = FakeCluster(application(good))
    render(cluster, read(remote.work, good), OVERLAY, good)
    (command,) = cluster.commands
    for part in ("DynamicUser=yes", "PrivateNetwork=yes", "ProtectSystem=strict", "MemoryMax=512M", "RuntimeMaxSec=90"):
        assert f"-p {part}" in command


def test_ci_refuses_the_same(tmp_path):
    for name, text in REMOTE.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "kustomization.yaml").write_text(text + "\n")
    script = ["python3", ROOT / "gitops/ci/checks/check_closed.py", tmp_path]
    done = subprocess.run(script, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert [name for name in REMOTE if f"{name}/kustomization.yaml" not in done.stderr] == []


def test_the_repository_to_start_from_is_closed():
    script = ["python3", ROOT / "gitops/ci/checks/check_closed.py", ROOT / "gitops"]
    assert subprocess.run(script, timeout=30).returncode == 0


# --- what is shown ---------------------------------------------------------------------------------------------------


def config_map(text: str, name: str = "x") -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": text}}


def test_nothing_in_a_diff_steers_the_terminal():
    hostile = "\x1b[2J\x1b[1;1H\x1b]0;title\x07\x9b2J\r\b\u202egnp.exe\u200b"
    changes = difference([], [config_map(hostile, f"evil{hostile}")])
    shown = plain(str(changes)) + "".join(plain(line) for line in changes.summary)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert not re.search("[\u200b-\u200f\u202a-\u202e]", shown)


def test_a_huge_diff_hides_nothing():
    filler = [config_map("\n".join("x" * 80 for _ in range(5_000)), f"filler-{number}") for number in range(3)]
    changes = difference([], [*filler, yaml.safe_load(BINDING)])
    lines = str(changes).splitlines()
    assert len(lines) > 15_000
    # Last, where the reader is when the question comes, and again in one line.
    assert "cluster-admin" in "\n".join(lines[-15:])
    assert changes.summary[-1] == "ClusterRoleBinding helper: 12 lines added, 0 removed  <- gives rights"


def test_two_objects_of_one_name_do_not_hide_each_other():
    twin = config_map("evil") | {"apiVersion": "other.example/v1"}
    assert "evil" in str(difference([config_map("good")], [config_map("good"), twin]))
    assert "evil" in str(difference([config_map("good")], [twin, config_map("good")]))


# --- what an application may hold ------------------------------------------------------------------------------------


def held(application: str, *objects: dict | str) -> str:
    parsed = [yaml.safe_load(each) if isinstance(each, str) else each for each in objects]
    return "\n".join(policy.violations(application, parsed, ADDRESS))


def test_the_attack_on_argocds_own_manifest_is_seen_and_refused(remote, tmp_path):
    """A binding to cluster-admin, and a pod that uses it: signed or not."""
    pod = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: helper, namespace: argocd}
spec: {template: {spec: {containers: [{name: x, image: y}]}}}
"""
    assert "not one of ArgoCD's own cluster-wide objects" in held("argocd", BINDING)
    assert "to somebody else" in held("argocd", BINDING.replace("helper", "argocd-server"))
    assert "not one of ArgoCD's own programs" in held("argocd", pod)
    assert "in namespace kube-system" in held("argocd", pod.replace("namespace: argocd", "namespace: kube-system"))
    assert "no object of this kind" in held("argocd", {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}})


@pytest.mark.parametrize(
    "each",
    [
        BINDING,
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "open"}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "x"}},
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "x"}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "x"}},
    ],
)
def test_a_service_holds_no_more_than_a_service_needs(each):
    assert "no service may have" in held(NAME, each)


def test_a_service_stays_in_its_namespace(remote, desk):
    for namespace in ("kube-system", "argocd", "other"):
        each = config_map("x")
        each["metadata"]["namespace"] = namespace
        assert f"in namespace {namespace}" in held(NAME, each)
    text = json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}})
    remote.push_files({f"{OVERLAY}/objects.yaml": text}, "a secret")
    found = refused(desk, "objects that are not allowed")
    assert "+kind: Secret" in found.text


def root_objects() -> list[dict]:
    return [dict(deploy_files.project(NAME, ADDRESS)), dict(deploy_files.application(NAME, "lab", ADDRESS, "main"))]


def test_what_is_rendered_holds_what_it_may():
    project, service = root_objects()
    assert held("root", project, service) == ""
    assert held(NAME, *manifests_of()) == ""
    kinds = {(each["group"], each["kind"]) for each in project["spec"]["namespaceResourceWhitelist"]}
    assert kinds == policy.SERVICE_KINDS


WIDER = {
    "a cluster-wide kind": lambda p, s: p["spec"].update(clusterResourceWhitelist=[{"group": "*", "kind": "*"}]),
    "another namespace": lambda p, s: p["spec"]["destinations"][0].update(namespace="*"),
    "one namespace more": lambda p, s: p["spec"]["destinations"].append({"server": "*", "namespace": "kube-system"}),
    "another kind": lambda p, s: p["spec"]["namespaceResourceWhitelist"].append({"group": "", "kind": "Secret"}),
    "no list of kinds": lambda p, s: p["spec"].pop("namespaceResourceWhitelist"),
    "another source": lambda p, s: p["spec"].update(sourceRepos=["*"]),
    "a role": lambda p, s: p["spec"].update(roles=[{"name": "x"}]),
    "ArgoCD's own project": lambda p, s: p["metadata"].update(name="system"),
    "an application in it": lambda p, s: s["spec"].update(project="system"),
    "ArgoCD's own application": lambda p, s: s["metadata"].update(name="argocd"),
    "a sync without a person": lambda p, s: s["spec"]["syncPolicy"].update(automated={}),
    "a sync that starts at once": lambda p, s: s.update(operation={"sync": {"revision": "0" * 40}}),
    "labels of the namespace": lambda p, s: s["spec"]["syncPolicy"].update(managedNamespaceMetadata={}),
    "another place": lambda p, s: s["spec"]["destination"].update(namespace="kube-system"),
    "another repository": lambda p, s: s["spec"]["source"].update(repoURL="https://attacker.example"),
    "a second source": lambda p, s: s["spec"].update(sources=[{}]),
    "a plugin": lambda p, s: s["spec"]["source"].update(plugin={"name": "x"}),
    "patches of its own": lambda p, s: s["spec"]["source"].update(kustomize={"patches": []}),
    "another folder": lambda p, s: s["spec"]["source"].update(path="argocd"),
    "in another namespace": lambda p, s: s["metadata"].update(namespace=NAME),
    "another kind of object": lambda p, s: s.update(kind="ApplicationSet"),
}


@pytest.mark.parametrize("name", WIDER)
def test_a_project_does_not_widen_itself(name):
    project, service = root_objects()
    WIDER[name](project, service)
    assert held("root", project, service)


def test_the_machines_own_project_allows_the_same(remote):
    """templates/argocd/applications.yaml.j2 and the rules of the controller are one list."""
    text = (ROOT / "templates/argocd/applications.yaml.j2").read_text()
    (system,) = [
        each
        for each in yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "x", text))
        if each["kind"] == "AppProject" and each["metadata"]["name"] == "system"
    ]
    allowed: dict[str, set[str]] = {}
    for each in system["spec"]["clusterResourceWhitelist"]:
        allowed.setdefault(each["kind"], set()).add(each["name"])
    assert allowed == policy.SYSTEM_CLUSTER_WIDE
    kinds = {(each["group"], each["kind"]) for each in system["spec"]["namespaceResourceWhitelist"]}
    assert kinds == policy.SYSTEM_KINDS
