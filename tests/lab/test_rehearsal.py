"""Test the first command of README end to end, and its results."""

from __future__ import annotations

from minipc import config
from minipc.config.components import select
from minipc.core.paths import ROOT
from minipc.evidence.records import load
from tests.lab.conftest import converge, on, run


def test_it_passes_and_lists_what_was_not_exercised(rehearsal):
    assert rehearsal.done.code == 0, f"{rehearsal.why}\n{rehearsal.done.output[-4000:]}"
    done, total = rehearsal.record["exercised"]["done"], rehearsal.record["exercised"]["total"]
    assert f"PASS, {done} of {total} exercised" in rehearsal.done.output
    assert done < total, "a container can't keep its own time: something must be NOT EXERCISED here"
    said = " ".join(rehearsal.done.output.split())
    for gap in rehearsal.record["exercised"]["not_exercised"]:
        assert gap["what"] in said, gap


def test_its_record_is_valid_and_complete(rehearsal):
    record = load(ROOT / "reports/records" / f"{rehearsal.record['id']}-rehearsal.json")
    assert [component.name for component in record.components] == [component.name for component in select([])]
    for component in record.components:
        assert component.verdict == "pass" or component.reason, component
        assert component.checks_passed or not component.exercised, f"{component.name} was not checked"
    assert [phase.name for phase in record.phases] == [
        "prepare",
        "boot",
        "doctor",
        "artifacts",
        "preflight",
        "adopt",
        "off-site host",
        "deploy repository",
        "converge",
        "ArgoCD",
        "first release",
        "certificate",
        "verify",
        "backup and drill",
        "converge again",
        "plan",
        "verify off-site",
        "exposure proof",
        "seal the bundle",
        "use and back up",
        "lose the machine",
        "boot again",
        "break glass",
        "adopt",
        "preflight",
        "fence",
        "host and network",
        "data",
        "images",
        "service",
        "public ingress",
        "public name",
        "backups again",
        "smoke",
        "verify again",
        "measure data loss",
    ]
    assert {port.moment for port in record.exposure} == {"after a reload", "during a converge"}
    gates = {gate.name: gate for gate in record.gates}
    assert gates["changes of the second converge"].seen == 0
    assert gates["changes that a plan finds"].seen == 0
    assert record.runtime == "podman"
    assert record.versions["postgresql-17"].startswith("17.")


def test_the_rebuild_used_only_the_bundle(rehearsal):
    phases = {phase["name"]: phase for phase in rehearsal.record["phases"]}
    assert phases["break glass"]["detail"].startswith("rebuilt from: the bundle, empty HOME, clean clone of ")
    assert "secrets, keys, inventory, pins" in phases["seal the bundle"]["detail"]


def test_acknowledged_writes_are_restored(rehearsal):
    record = rehearsal.record
    assert 0 < record["rto_seconds"] <= record["rto_budget_seconds"] == 4 * 3600
    assert 0 <= record["rpo_seconds"] <= record["rpo_budget_seconds"] == 24 * 3600
    classes = {each["name"]: each for each in record["data_classes"]}
    measured = [name for name in classes if name.partition(": ")[2] in ("must recover", "evidence")]
    assert len(measured) >= 2
    for name in measured:
        assert classes[name]["verdict"] == "pass"
        assert classes[name]["rows_found"] == classes[name]["rows_expected"] > 0


def test_its_report_is_one_self_contained_file(rehearsal):
    html = (rehearsal.directory / "report.html").read_text()
    assert "Timeline" in html
    assert "NOT EXERCISED" in html.upper()
    for outside in ('src="http', "@import", '<link rel="stylesheet"', "url(http"):
        assert outside not in html


def test_lines_are_plain_without_a_terminal(rehearsal):
    assert "\x1b" not in rehearsal.done.output
    assert "converge: ✓ pass" in rehearsal.done.output


def test_keep_prints_how_to_reach_the_machine(rehearsal, site):
    assert f"minipc lab ssh {site.name}" in rehearsal.done.output
    assert on(site, "hostname").strip() == "minipc"


def test_a_plan_shows_a_pending_change_and_exits_2(site):
    # Packages that other tests installed are not in the record of the installed release.
    assert converge(site, "release").code == 0
    on(site, "echo '# edited by hand' >> /etc/redis/redis.conf")
    planned = run("minipc", "plan", "--inventory", "lab", "--host", site.name, "redis")
    assert planned.code == 2, planned.output
    assert "-# edited by hand" in planned.output
    assert "would change  redis: Configure Redis" in planned.output
    assert on(site, "tail -n1 /etc/redis/redis.conf") == "# edited by hand\n", "a plan must not change anything"
    assert converge(site, "redis").code == 0
    assert run("minipc", "plan", "--inventory", "lab", "--host", site.name, "redis").code == 0


def test_a_changed_password_in_the_database_is_repaired(site):
    role = config.load("lab").postgres.databases[0].runtime
    on(site, f"runuser -u postgres -- psql -qc \"ALTER ROLE {role} PASSWORD 'stolen'\"")
    planned = run("minipc", "plan", "--inventory", "lab", "--host", site.name, "postgres")
    assert planned.code == 2
    assert converge(site, "postgres").code == 0
    assert run("minipc", "verify", "--inventory", "lab", "--host", site.name, "postgres").code == 0


def test_apply_and_verify_one_component(site):
    applied = run("minipc", "apply", "--inventory", "lab", "--host", site.name, "redis", timeout_s=300)
    assert applied.code == 0, applied.output
    assert "PASS" in applied.output
    on(site, "chmod o+r /etc/redis/users.acl")
    try:
        verified = run("minipc", "verify", "--inventory", "lab", "--host", site.name, "redis")
        assert verified.code == 1, verified.output
        assert "FAILED redis" in verified.output
    finally:
        assert converge(site, "redis").code == 0
    assert on(site, "stat -c %a /etc/redis/users.acl").strip() == "640"
