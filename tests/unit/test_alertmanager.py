"""Alertmanager's password, without a machine: who needs it has it; what is written is a hash."""

from __future__ import annotations

import json

import bcrypt
import pytest
import yaml

from minipc.config import load
from minipc.core.errors import CouldNotVerifyError
from minipc.core.paths import ROOT
from minipc.pyinfra_ext.operations.files import File, render
from minipc.secrets import Secret
from minipc.secrets.catalogue import ALERTMANAGER_PASSWORD, whole
from minipc.secrets.hashing import hashed
from playbooks import alert_test, digest

PASSWORD = Secret(ALERTMANAGER_PASSWORD, "opensesame")
CHANNELS = [
    {"name": "slack", "kind": "slack"},
    {"name": "hook", "kind": "webhook", "priorities": ["P1"]},
    {"name": "phone", "kind": "ntfy", "priorities": ["P1", "P2"]},
    {"name": "mail", "kind": "email", "server": "mail.example.org", "port": 587, "sender": "a@b.c", "to": "d@e.f"},
    {
        "name": "post",
        "kind": "email",
        "server": "mail.example.org",
        "port": 465,
        "user": "u",
        "sender": "a@b.c",
        "to": "d@e.f",
    },
    {"name": "bot", "kind": "telegram", "chat_id": -7},
    {"name": "chat", "kind": "discord"},
    {"name": "push", "kind": "pushover"},
]
SECRETS = {
    "alertmanager.slack_url": "url",
    "alertmanager.hook_url": "url",
    "alertmanager.phone_url": "url",
    "alertmanager.post_password": "line",
    "alertmanager.bot_token": "line",
    "alertmanager.chat_url": "url",
    "alertmanager.push_token": "line",
    "alertmanager.push_user_key": "line",
}
VALUES = {"etc": "/etc/prometheus/minipc", "ports": {"alertmanager": 9093}, "user": "operator", "port": 9093}


def rendered(component: str, name: str, **more) -> str:
    return render(component, File(name, "/x"), VALUES | more).content.decode()


def test_the_password_is_generated_and_needed_everywhere():
    for channels in (CHANNELS, []):
        entries = {
            each.name: each for each in whole(load("lab", host_operator_keys=[], alertmanager_channels=channels))
        }
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
    lab = load("lab", host_operator_keys=[])
    values = {"prometheus": lab.prometheus, "host": lab.host, "offsite_url": None}
    alerts = yaml.safe_load(rendered("prometheus", "prometheus.yml.j2", **values))["alerting"]
    assert [each["basic_auth"] for each in alerts["alertmanagers"]] == [wanted]
    (scrape,) = yaml.safe_load(rendered("alertmanager", "scrape.yml.j2"))["scrape_configs"]
    assert scrape["basic_auth"] == wanted
    amtool = yaml.safe_load(rendered("alertmanager", "amtool.yml.j2", password_file=wanted["password_file"]))
    assert amtool["basic_auth"] == wanted
    assert (
        f'PASSWORD_FILE = f"{{ETC}}/{wanted["password_file"].rpartition("/")[2]}"'
        in (ROOT / "deploys/alertmanager.py").read_text()
    )


def configuration(channels) -> dict:
    settings = load("lab", host_operator_keys=[], alertmanager_channels=channels)
    values = {
        "alertmanager": settings.alertmanager,
        "channels": settings.alertmanager.channels,
        "host": settings.host,
        "inhibitions": [],
        "watchdog": False,
    }
    return yaml.safe_load(rendered("alertmanager", "alertmanager.yml.j2", paced=lambda duration: duration, **values))


def test_each_channel_is_a_receiver_and_has_its_secrets_in_files():
    receivers = {each.pop("name"): each for each in configuration(CHANNELS)["receivers"]}
    assert receivers.keys() == {"nobody", *(channel["name"] for channel in CHANNELS)}
    entries = whole(load("lab", host_operator_keys=[], alertmanager_channels=CHANNELS))
    names = {entry.name: entry.rule for entry in entries if entry.name in SECRETS}
    assert names == SECRETS
    files = [text for each in receivers.values() for (config,) in each.values() for text in map(str, config.values())]
    for name in SECRETS:
        assert f"/etc/prometheus/minipc/{name.removeprefix('alertmanager.')}" in files
    for name, (config,) in ((name, next(iter(each.values()))) for name, each in receivers.items() if each):
        assert config["send_resolved"] is True, name


def test_mail_is_never_sent_without_tls():
    (mail,) = configuration(CHANNELS[3:4])["receivers"][1]["email_configs"]
    assert mail["require_tls"] is True
    assert "auth_username" not in mail


def test_each_priority_goes_to_the_channels_that_want_it():
    routes = [each for each in configuration(CHANNELS)["route"]["routes"] if each.get("continue")]
    weekly = [each["receiver"] for each in routes if each.get("active_time_intervals") == ["digest"]]
    assert weekly == [each["name"] for each in CHANNELS if "P3" in each.get("priorities", ["P3"])]
    routes = [each for each in routes if "active_time_intervals" not in each]
    wanted = {(each["receiver"], each["matchers"][0][10:12]): each["repeat_interval"] for each in routes}
    assert {priority for name, priority in wanted if name == "hook"} == {"P1"}
    assert {priority for name, priority in wanted if name == "phone"} == {"P1", "P2"}
    assert [wanted["slack", priority] for priority in ("P1", "P2", "P3")] == ["1h", "4h", "24h"]


DIGEST = {"Watchdog": "Alerting works.", "Digest": "Backups: none\nDisk: / \x1b5 %\n"}
LOG = r"""
level=WARN msg="Notify attempt failed, will retry later" receiver=bot err="x"
level=ERROR msg="Notify for alerts failed" num_alerts=1 err="slack/slack[0]: status code 403: \"invalid_token\""
level=ERROR msg="Notify for alerts failed" err="bot/telegram[0]: \"https://x/bot12:SECRET/send\": no such host"
"""


def metrics(**channels: tuple[int, int, int]) -> str:
    kinds = ("notifications_failed", "notification_requests", "notification_requests_failed")
    return "".join(
        f'alertmanager_{kind}_total{{integration="x",receiver_name="{name}"}} {value}\n'
        for name, values in channels.items()
        for kind, value in zip(kinds, values, strict=True)
    )


def test_what_arrived_follows_from_the_counters():
    before = alert_test.counters(metrics(slack=(1, 4, 4), hook=(0, 0, 0), mail=(0, 7, 2), bot=(0, 0, 0)))
    now = alert_test.counters(metrics(slack=(2, 5, 5), hook=(0, 1, 0), mail=(0, 8, 3), bot=(0, 0, 0)))
    assert alert_test.outcomes(before, now) == {"slack": False, "hook": True}, "mail is tried again, bot not yet"


def test_the_reason_is_the_channels_own_and_has_no_secret():
    assert alert_test.reason(LOG, "slack") == 'slack/slack[0]: status code 403: "invalid_token"'
    assert "no such host" in alert_test.reason(LOG, "bot")
    assert "SECRET" not in alert_test.reason(LOG, "bot")
    assert "no success within" in alert_test.reason(LOG, "mail")


def test_the_digest_is_printed_line_by_line():
    alerts = [{"labels": {"alertname": name}, "annotations": {"meaning": text}} for name, text in DIGEST.items()]
    assert digest.text_of(json.dumps({"data": {"alerts": alerts}})) == "Backups: none\nDisk: / 5 %"
    with pytest.raises(CouldNotVerifyError, match="no digest"):
        digest.text_of(json.dumps({"data": {"alerts": alerts[:1]}}))
