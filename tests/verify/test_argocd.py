"""Checks of ArgoCD: its state, its rights, its access to the deploy repository, and who can log in."""

from __future__ import annotations

import json
import shlex

import pytest

from minipc.gitops import policy
from minipc.secrets import load
from minipc.secrets.catalogue import ARGOCD_PASSWORD
from minipc.secrets.hashing import hashed
from tests.verify.conftest import eventually, not_exercised

KUBECTL = "k3s kubectl --request-timeout=20s"
CURL = ("curl", "--silent", "--insecure", "--max-time", "10", "--noproxy", "*")


@pytest.fixture(scope="session", autouse=True)
def _is_here(settings, sh):
    if settings.services.runtime != "k3s":
        not_exercised("services run under podman, without K3s")
    if not sh("ls /etc/minipc/argocd/install.yaml 2>/dev/null || true"):
        not_exercised("an artifact is not available, or there is no deploy repository")


@pytest.fixture(scope="session")
def get(sh):
    """Return a function that reads an object in ArgoCD's namespace."""
    return lambda *words: json.loads(sh(f"{KUBECTL} get {shlex.join(words)} -n argocd -o json"))


@pytest.fixture(scope="session")
def application(get):
    """Return a function that waits up to three minutes for an application and returns its sync and health."""

    def state(name):
        status = get("applications.argoproj.io", name).get("status", {})
        return status.get("sync", {}).get("status"), status.get("health", {}).get("status")

    def wait(name):
        eventually(lambda: state(name) == ("Synced", "Healthy"), within_s=180, every_s=2)
        return state(name)

    return wait


@pytest.fixture(scope="session")
def password(environment):
    return load(environment.name, [ARGOCD_PASSWORD])[ARGOCD_PASSWORD]


def test_all_its_parts_run(get):
    """All pods of ArgoCD are ready."""
    pods = get("pods")["items"]
    waiting = [
        pod["metadata"]["name"]
        for pod in pods
        if not all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": False}]))
    ]
    assert (len(pods) >= 4, waiting) == (True, [])


@pytest.mark.parametrize("name", ["root", "argocd"])
def test_it_is_what_the_repository_says(application, name):
    """The application is synced with the deploy repository and healthy.

    `argocd` manages its own installation. If one of them is not synced: `minipc argocd sync`.
    """
    assert application(name) == ("Synced", "Healthy")


def test_nothing_may_be_in_the_project_that_every_argocd_has(get):
    """The default ArgoCD project allows no source and no destination."""
    spec = get("appprojects.argoproj.io", "default")["spec"]
    assert not spec.get("sourceRepos")
    assert not spec.get("destinations")


def test_no_default_account_is_left(sh, get):
    """ArgoCD has no initial password and no additional account."""
    assert sh(f"{KUBECTL} get secret argocd-initial-admin-secret -n argocd --ignore-not-found") == ""
    accounts = [key for key in get("configmap", "argocd-cm").get("data", {}) if key.startswith("accounts.")]
    assert accounts == []


def test_only_the_administrators_password_opens_it(script, settings, password):
    """ArgoCD accepts the administrator's password and refuses default passwords."""
    url = "https://127.0.0.1:30443/api/v1/session"
    ask = "curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{http_code}\\n' "
    ask += f"--header 'Content-Type: application/json' {url} -d @-"
    # The password goes through stdin, as everywhere.
    bodies = [json.dumps({"username": "admin", "password": word}) for word in (password.reveal(), "admin", "password")]
    codes = script("\n".join(f"{ask} <<'END'\n{body}\nEND" for body in bodies)).split()
    assert codes == ["200", "401", "401"]


def test_the_password_is_kept_as_a_hash(sh, password):
    """The administrator's password is stored as a hash only."""
    kept = sh(f"{KUBECTL} get secret argocd-secret -n argocd -o jsonpath='{{.data.admin\\.password}}' | base64 -d")
    assert kept == hashed(password)


def test_a_stranger_sees_no_application(sh):
    """ArgoCD lists no application without a login."""
    url = "https://127.0.0.1:30443/api/v1/applications"
    code = sh(f"curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{{http_code}}' {url}")
    assert code == "401"


def test_the_operator_reaches_it(operator, settings):
    """The operator reaches ArgoCD's web interface."""
    url = f"https://{operator.ipv4}:{settings.argocd.port}/api/version"
    done = operator.run(*CURL, url)
    assert "Version" in done.stdout, done


def test_the_public_does_not(environment, public, settings):
    """ArgoCD is not reachable from the public side."""
    if not environment.has_public_client:
        not_exercised("the controller stands on the operator side")
    for port in (settings.argocd.port, 30443, 30080):
        done = public.run(*CURL, "--max-time", "2", f"https://{public.ipv4}:{port}/")
        assert done.returncode in (7, 28), (port, done)


def test_its_key_can_only_read(script, settings, get):
    """The cluster's deploy key can read the deploy repository, but not write to it or open a shell."""
    if settings.argocd.repository:
        not_exercised("the deploy repository is hosted elsewhere: its deploy key is set to read-only there")
    kubectl = f"{KUBECTL} -n argocd get"
    url = script(f"{kubectl} secret deploy-repository -o jsonpath='{{.data.url}}' | base64 -d")
    host, _, port = url.removeprefix("ssh://git@").split("/")[0].rpartition(":")
    ssh = f"ssh -F /dev/null -i $d/key -o UserKnownHostsFile=$d/hosts -o BatchMode=yes -p {port}"
    said = script(
        f"""d=$(mktemp -d)
umask 077
{kubectl} secret deploy-repository -o jsonpath='{{.data.sshPrivateKey}}' | base64 -d > $d/key
{kubectl} configmap argocd-ssh-known-hosts-cm -o jsonpath='{{.data.ssh_known_hosts}}' > $d/hosts
{ssh} git@{host} "git-upload-pack 'x'" </dev/null | tr '\\0' ' ' | grep -c refs/heads
timeout 10 {ssh} git@{host} "git-receive-pack '/srv/minipc-offsite/git/deploy.git'" </dev/null | grep -ac report-status
timeout 10 {ssh} git@{host} id </dev/null | grep -ac uid=
rm -r $d"""
    ).splitlines()
    counts = [line for line in said if line.isdigit()]
    assert int(counts[0]) >= 1, said
    assert counts[1:] == ["0", "0"], said


def test_its_rights_end_where_the_projects_end(get):
    """The system project may only deploy from one repository to the namespace argocd."""
    spec = get("appprojects.argoproj.io", "system")["spec"]
    assert [each["namespace"] for each in spec["destinations"]] == ["argocd"]
    assert len(spec["sourceRepos"]) == 1
    found: dict[str, set[str]] = {}
    for each in spec["clusterResourceWhitelist"]:
        found.setdefault(each["kind"], set()).add(each["name"])
    assert found == policy.SYSTEM_CLUSTER_WIDE
    assert {(each["group"], each["kind"]) for each in spec["namespaceResourceWhitelist"]} == policy.SYSTEM_KINDS


def test_a_services_project_has_nothing_of_the_cluster(get):
    """A service's project may only deploy its own kinds to its own namespace."""
    ours = policy.OURS
    services = [each for each in get("appprojects.argoproj.io")["items"] if each["metadata"]["name"] not in ours]
    if not services:
        not_exercised("no service is defined yet: `minipc argocd sync`")
    for each in services:
        spec = each["spec"]
        assert not spec.get("clusterResourceWhitelist")
        assert [place["namespace"] for place in spec["destinations"]] == [each["metadata"]["name"]]
        kinds = {(kind["group"], kind["kind"]) for kind in spec["namespaceResourceWhitelist"]}
        assert kinds <= policy.SERVICE_KINDS


def test_privileged_pods_are_refused_where_it_runs(sh):
    """Privileged pods are refused in ArgoCD's namespace."""
    labels = json.loads(sh(f"{KUBECTL} get namespace argocd -o json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "verify-privileged", "namespace": "argocd"},
        "spec": {"containers": [{"name": "x", "image": "x", "securityContext": {"privileged": True}}]},
    }
    said = sh(f"echo {shlex.quote(json.dumps(pod))} | {KUBECTL} create --dry-run=server -f - 2>&1 || true")
    assert "violates PodSecurity" in said


def test_what_builds_manifests_reaches_the_repository_and_not_the_cluster(sh):
    """The process that builds manifests cannot reach the Kubernetes API.

    It reads the repository; an answer of the API would let it change the cluster.
    """
    reach = "timeout 4 bash -c 'exec 3<>/dev/tcp/{}' 2>/dev/null && echo open || echo shut"
    inside = f"{KUBECTL} exec -n argocd deployment/{{}} -c {{}} -- bash -c {{}}"
    address = "kubernetes.default.svc/443"
    builder, server = (
        sh(inside.format(name, name, shlex.quote(reach.format(address))))
        for name in ("argocd-repo-server", "argocd-server")
    )
    assert (builder.strip(), server.strip()) == ("shut", "open")


def test_the_root_application_defines_applications_only(get):
    """The root application may define only applications and projects."""
    spec = get("appprojects.argoproj.io", "root")["spec"]
    assert {each["kind"] for each in spec["namespaceResourceWhitelist"]} == {"Application", "AppProject"}
    assert not spec.get("clusterResourceWhitelist")
    assert get("applications.argoproj.io", "root")["spec"]["project"] == "root"


def test_nothing_is_synced_without_a_person(get):
    """No application is synced automatically; a person starts every sync.

    Otherwise anybody who can write to the repository would control the cluster a minute later.
    """
    found = {each["metadata"]["name"]: each["spec"] for each in get("applications.argoproj.io")["items"]}
    assert {"root", "argocd"} <= set(found)
    assert [name for name, spec in found.items() if "automated" in spec.get("syncPolicy", {})] == []
