"""Alertmanager's password, without a machine: who needs it has it; what is written is a hash."""

from __future__ import annotations

import bcrypt
import yaml

from minipc.config import load
from minipc.operations.files import File, render
from minipc.paths import ROOT
from minipc.secrets import Secret
from minipc.secrets.catalogue import ALERTMANAGER_PASSWORD, whole
from minipc.secrets.hashing import hashed

PASSWORD = Secret(ALERTMANAGER_PASSWORD, "opensesame")
VALUES = {"etc": "/etc/prometheus/minipc", "ports": {"alertmanager": 9093}, "user": "operator", "port": 9093}


def rendered(component: str, name: str, **more) -> str:
    return render(component, File(name, "/x"), VALUES | more).content.decode()


def test_the_password_is_generated_and_needed_everywhere():
    for slack in (True, False):
        entries = {each.name: each for each in whole(load("lab", host_operator_keys=[], alertmanager_slack=slack))}
        assert entries[ALERTMANAGER_PASSWORD].generate == "alphanumeric"
        assert not entries[ALERTMANAGER_PASSWORD].optional


def test_its_web_interface_asks_for_it():
    text = rendered("alertmanager", "web.yml.j2", hash=hashed(PASSWORD, "alertmanager"))
    assert "opensesame" not in text
    assert bcrypt.checkpw(b"opensesame", yaml.safe_load(text)["basic_auth_users"]["operator"].encode())
    assert hashed(PASSWORD, "alertmanager") != hashed(PASSWORD), "another program's is another hash"
    assert "--web.config.file=/etc/prometheus/minipc/alertmanager-web.yml" in rendered(
        "alertmanager", "override.conf.j2"
    )


def test_prometheus_and_amtool_send_it():
    wanted = {"username": "operator", "password_file": "/etc/prometheus/minipc/alertmanager.password"}
    prometheus = load("lab", host_operator_keys=[]).prometheus
    alerts = yaml.safe_load(rendered("prometheus", "prometheus.yml.j2", prometheus=prometheus))["alerting"]
    assert [each["basic_auth"] for each in alerts["alertmanagers"]] == [wanted]
    (scrape,) = yaml.safe_load(rendered("alertmanager", "scrape.yml.j2"))["scrape_configs"]
    assert scrape["basic_auth"] == wanted
    amtool = yaml.safe_load(rendered("alertmanager", "amtool.yml.j2", password_file=wanted["password_file"]))
    assert amtool["basic_auth"] == wanted
    assert (
        f'PASSWORD_FILE = f"{{ETC}}/{wanted["password_file"].rpartition("/")[2]}"'
        in (ROOT / "deploys/alertmanager.py").read_text()
    )
