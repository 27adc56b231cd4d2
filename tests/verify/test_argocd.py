"""ArgoCD: it runs, manages itself from the deploy repository, can't write there, and lets only the operator in."""

from __future__ import annotations

import json
import shlex

import pytest

from minipc.secrets import load
from minipc.secrets.catalogue import ARGOCD_PASSWORD
from minipc.secrets.hashing import hashed
from tests.verify.conftest import eventually, not_exercised

KUBECTL = "k3s kubectl --request-timeout=20s"
CURL = ("curl", "--silent", "--insecure", "--max-time", "10", "--noproxy", "*")


@pytest.fixture(scope="session", autouse=True)
def _is_here(settings, sh):
    if settings.workload.runtime != "k3s":
        not_exercised(f"the service runs as a {settings.workload.runtime}")
    if not sh("ls /etc/minipc/argocd/install.yaml 2>/dev/null || true"):
        not_exercised("an artifact could not be had, or there is no deploy repository")


@pytest.fixture(scope="session")
def get(sh):
    """An object in ArgoCD's namespace."""
    return lambda *words: json.loads(sh(f"{KUBECTL} get {shlex.join(words)} -n argocd -o json"))


@pytest.fixture(scope="session")
def application(get):
    """Sync and health of an application, as soon as it is well within three minutes."""

    def state(name):
        status = get("applications.argoproj.io", name).get("status", {})
        return status.get("sync", {}).get("status"), status.get("health", {}).get("status")

    def wait(name):
        eventually(lambda: state(name) == ("Synced", "Healthy"), within_s=180, every_s=2)
        return state(name)

    return wait


@pytest.fixture(scope="session")
def password(environment):
    return load(environment, [ARGOCD_PASSWORD])[ARGOCD_PASSWORD]


def test_all_its_parts_run(get):
    pods = get("pods")["items"]
    waiting = [
        pod["metadata"]["name"]
        for pod in pods
        if not all(each["ready"] for each in pod["status"].get("containerStatuses", [{"ready": False}]))
    ]
    assert (len(pods) >= 4, waiting) == (True, [])


@pytest.mark.parametrize("name", ["root", "argocd"])
def test_it_is_what_the_repository_says(application, name):
    """`argocd`: it manages itself, and what it was bootstrapped with is what Git says. Both: `minipc argocd sync`."""
    assert application(name) == ("Synced", "Healthy")


def test_nothing_may_be_in_the_project_that_every_argocd_has(get):
    spec = get("appprojects.argoproj.io", "default")["spec"]
    assert not spec.get("sourceRepos")
    assert not spec.get("destinations")


def test_no_default_account_is_left(sh, get):
    assert sh(f"{KUBECTL} get secret argocd-initial-admin-secret -n argocd --ignore-not-found") == ""
    accounts = [key for key in get("configmap", "argocd-cm").get("data", {}) if key.startswith("accounts.")]
    assert accounts == []


def test_only_the_administrators_password_opens_it(script, settings, password):
    url = "https://127.0.0.1:30443/api/v1/session"
    ask = "curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{http_code}\\n' "
    ask += f"--header 'Content-Type: application/json' {url} -d @-"
    # The password goes through stdin, as everywhere.
    bodies = [json.dumps({"username": "admin", "password": word}) for word in (password.reveal(), "admin", "password")]
    codes = script("\n".join(f"{ask} <<'END'\n{body}\nEND" for body in bodies)).split()
    assert codes == ["200", "401", "401"]


def test_the_password_is_kept_as_a_hash(sh, password):
    kept = sh(f"{KUBECTL} get secret argocd-secret -n argocd -o jsonpath='{{.data.admin\\.password}}' | base64 -d")
    assert kept == hashed(password)


def test_a_stranger_sees_no_application(sh):
    url = "https://127.0.0.1:30443/api/v1/applications"
    code = sh(f"curl --silent --insecure --noproxy '*' --output /dev/null --write-out '%{{http_code}}' {url}")
    assert code == "401"


def test_the_operator_reaches_it(operator, settings):
    url = f"https://{operator.ipv4}:{settings.argocd.port}/api/version"
    done = operator.run(*CURL, url)
    assert "Version" in done.stdout, done


def test_the_public_does_not(environment, public, settings):
    if environment != "lab":
        not_exercised("the controller stands on the operator side")
    for port in (settings.argocd.port, 30443, 30080):
        done = public.run(*CURL, "--max-time", "2", f"https://{public.ipv4}:{port}/")
        assert done.returncode in (7, 28), (port, done)


def test_its_key_can_only_read(script, settings, get):
    """With the key that the cluster holds: reading works, writing and a shell don't."""
    if settings.argocd.repository:
        not_exercised("the deploy repository is somebody else's machine: its deploy key is set to read-only there")
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
    spec = get("appprojects.argoproj.io", "system")["spec"]
    assert [each["namespace"] for each in spec["destinations"]] == ["argocd"]
    assert len(spec["sourceRepos"]) == 1


def test_the_root_application_defines_applications_only(get):
    spec = get("appprojects.argoproj.io", "root")["spec"]
    assert {each["kind"] for each in spec["namespaceResourceWhitelist"]} == {"Application", "AppProject"}
    assert not spec.get("clusterResourceWhitelist")
    assert get("applications.argoproj.io", "root")["spec"]["project"] == "root"


def test_nothing_is_synced_without_a_person(get):
    """Whoever can write to the repository must not own the cluster a minute later."""
    found = {each["metadata"]["name"]: each["spec"] for each in get("applications.argoproj.io")["items"]}
    assert {"root", "argocd"} <= set(found)
    assert [name for name, spec in found.items() if "automated" in spec.get("syncPolicy", {})] == []
