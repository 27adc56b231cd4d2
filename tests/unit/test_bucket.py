"""The S3 client of `minipc_machine.bucket`, and a bucket's settings. tests/lab/test_bucket.py has a real server."""

from __future__ import annotations

import pytest

from minipc.config import load, offsite
from minipc.core.errors import ConfigError, MinipcError
from minipc.pyinfra_ext.facts.backups import Backups, BackupsState
from minipc.pyinfra_ext.operations import backups
from minipc.secrets import Secret
from minipc_machine import bucket
from minipc_machine.bucket import Answer, Bucket, Key
from minipc_machine.program import FailedError
from playbooks import preflight

S3 = {"endpoint": "s3.example.org", "bucket": "minipc-backups", "region": "eu-1"}
WHERE = Bucket("s3.example.org", "minipc-backups", "eu-1")
KEY = Key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_request_is_signed_as_in_the_example_of_the_specification():
    """The example "GET Object" of the Amazon S3 API reference, Signature Version 4."""
    headers = {"host": "examplebucket.s3.amazonaws.com", "range": "bytes=0-9", "x-amz-content-sha256": EMPTY}
    headers["x-amz-date"] = "20130524T000000Z"
    made = bucket._signature(Bucket("", "", "us-east-1"), KEY, headers, "GET\n/test.txt\n")
    assert made.endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_the_secret_half_of_the_key_is_never_shown():
    assert KEY.secret not in repr(KEY)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"endpoint": "https://s3.example.org/"}, "without https://; did you mean 's3.example.org'?"),
        ({"endpoint": "s3.example.org:0"}, "not a TCP port"),
        ({"endpoint": "203.0.113"}, "not an IP address"),
        ({"bucket": "My_Bucket"}, "offsite_s3[bucket]"),
        ({"region": ""}, "offsite_s3[region]"),
        ({"ca": "/etc/ca.crt"}, "offsite_s3[ca]"),
        ({"key": "hunter2"}, "offsite_s3[key]: unknown key"),
    ],
)
def test_a_wrong_description_of_the_bucket_is_refused(changed, message):
    assert load("lab", offsite_kind="s3", offsite_s3=S3 | {"endpoint": "203.0.113.7:7443"}).has_offsite
    with pytest.raises(ConfigError) as caught:
        load("lab", offsite_kind="s3", offsite_s3=S3 | changed)
    assert message in str(caught.value)


def test_there_is_a_bucket_or_an_off_site_host_and_not_both():
    with pytest.raises(ConfigError, match="backups_offsite is 'offsite', but offsite_kind 's3'"):
        load("lab", offsite_kind="s3", offsite_s3=S3, backups_offsite="offsite")


LISTING = "<ListBucketResult><CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes></ListBucketResult>"
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
VERSIONED = Answer(200, b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")


def server(monkeypatch, **answers):
    """Answer each request by its method, or by the name in its query. By default all is well."""
    fine = {"GET": Answer(200, b""), "PUT": Answer(200, b""), "DELETE": Answer(204, b"")}
    fine |= {"delimiter": Answer(200, LISTING.format("pgbackrest/").encode()), "versioning": VERSIONED}

    def request(_bucket, _key, method, path="", query="", body=b""):
        return (fine | answers).get(query.partition("=")[0] or method, Answer(404, b""))

    monkeypatch.setattr(bucket, "request", request)


def test_a_bucket_with_versioning_and_only_our_backups_is_fine(monkeypatch):
    server(monkeypatch)
    assert str(bucket.examine(WHERE, KEY)) == "the bucket keeps what is deleted (versioning, without object lock)"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"delimiter": DENIED}, "cannot be listed: AccessDenied: give the key the right"),
        ({"PUT": DENIED}, "cannot be written to: AccessDenied"),
        ({"DELETE": DENIED}, "cannot be cleaned up: AccessDenied"),
        ({"delimiter": Answer(200, LISTING.format("photos/").encode())}, "is used by something else.*'photos/'"),
        (
            {"delimiter": Answer(400, b"<E><Code>AuthorizationHeaderMalformed</Code><Region>us-2</Region></E>")},
            "its region is not eu-1; it is in us-2",
        ),
        ({"delimiter": Answer(404, b"<E><Code>NoSuchBucket</Code></E>")}, "create it"),
        ({"delimiter": Answer(502, b"<html>")}, "HTTP 502"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_said(monkeypatch, answers, message):
    server(monkeypatch, **answers)
    with pytest.raises(FailedError, match=message):
        bucket.examine(WHERE, KEY)


def subject():
    settings = load("lab", offsite_kind="s3", offsite_s3=S3)
    return preflight._Subject(preflight.Target("mini", {}, settings), None)


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setattr(preflight, "load_secrets", lambda _, names: {name: Secret(name, "hunter2") for name in names})


def test_the_preflight_says_that_a_bucket_has_no_versioning(monkeypatch, secrets):
    server(monkeypatch)
    assert preflight._bucket(subject()) == ""
    server(monkeypatch, versioning=Answer(200, b"<VersioningConfiguration/>"))
    assert "NO VERSIONING" in preflight._bucket(subject())
    server(monkeypatch, PUT=DENIED)
    with pytest.raises(MinipcError, match="AccessDenied"):
        preflight._bucket(subject())


def test_new_passphrases_need_a_new_bucket(monkeypatch, secrets):
    server(monkeypatch)
    with pytest.raises(ConfigError, match="contains pgbackrest/"):
        preflight.demand_empty(subject().target)
    server(monkeypatch, delimiter=Answer(200, b"<ListBucketResult/>"))
    preflight.demand_empty(subject().target)


def test_restic_gets_the_bucket_the_key_and_the_cas_by_files():
    settings = load("lab", offsite_kind="s3", offsite_s3=S3)
    assert offsite.restic_url(WHERE) == "s3:https://s3.example.org/minipc-backups/restic"
    assert "--cacert /etc/ssl/certs/ca-certificates.crt" in offsite.restic_command(settings)
    assert "AWS_DEFAULT_REGION=eu-1" in offsite.restic_command(settings)
    own = load("lab", offsite_kind="s3", offsite_s3=S3 | {"ca": "-----BEGIN CERTIFICATE-----\n"})
    assert "--cacert /etc/minipc/backups/offsite.crt" in offsite.restic_command(own)


@pytest.mark.parametrize(
    ("before", "after", "units"),
    [
        ("", "", []),
        ("", "s3.example.org/b", ["full", "files"]),
        ("s3.example.org/a", "s3.example.org/b", ["full", "files"]),
    ],
)
def test_a_new_bucket_gets_its_stanza_and_first_backups(monkeypatch, before, after, units):
    taken = ("repo1", "repo2", "restic")
    found = Backups(live="7", stanza="7", stanza_repos=(1, 2), storage=before, taken=taken)
    monkeypatch.setattr(backups, "recall", lambda _: found)
    stanza = list(backups.stanza_present._inner(repos=[1, 2], storage=after))
    assert bool(stanza) == bool(units)
    started = [str(each) for each in backups.first_backup_taken._inner([1, 2], ["restic"], storage=after)]
    assert [each.partition("@")[2].partition(".")[0] for each in started] == units


def test_the_record_of_an_earlier_version_is_not_in_a_bucket():
    assert BackupsState().process(['stanza {"system_id": "7", "repos": [1, 2]}']).storage == ""
