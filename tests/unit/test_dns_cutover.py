"""The move of a public name, over real HTTP: what stands in the way, what changes, the proof, and doing it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minipc import config
from minipc.cli import dns as dns_cli
from minipc.config.load import group_data
from minipc.core.errors import ConfigError, CouldNotVerifyError, MinipcError, RefusedError, SecretError
from minipc.dns import changes as dns_changes
from minipc.dns import provider as dns_provider
from minipc.dns.lexicon_provider import LexiconProvider
from minipc.dns.provider import wanted_records
from minipc.dns.records import DnsError, Record
from minipc.remote import inventory
from minipc.remote.inventory import Target
from minipc.secrets import Secret, Secrets
from playbooks import dns_cutover
from rehearsal.doubles.cloudflare import FakeCloudflare

TOKEN = "t0ken-for_example-org"
ZONE = "example.org"
NAME = "service.example.org"
HOLDER = f"_minipc.{NAME}"
OLD = "11111111-1111-4111-8111-111111111111"
NEW = "22222222-2222-4222-8222-222222222222"
RECORDS = [{"name": NAME, "type": "A"}, {"name": NAME, "type": "AAAA"}]
GIVEN = {"A": "198.51.100.8", "AAAA": "2001:db8::8"}


@pytest.fixture
def server() -> Iterator[FakeCloudflare]:
    with FakeCloudflare() as fake:
        fake.add_zone(ZONE, TOKEN)
        yield fake


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    for function in (dns_changes.confirm, LexiconProvider.__init__):
        monkeypatch.setitem(function.__kwdefaults__ or {}, "sleep", waits.append)
    monkeypatch.setattr(dns_changes.confirm, "__defaults__", (waits.append,))
    return waits


@pytest.fixture
def settings(server: FakeCloudflare) -> config.Settings:
    values = {
        "dns_provider": "cloudflare",
        "dns_zone": ZONE,
        "dns_records": RECORDS,
        "dns_api_url": server.api_url,
        "dns_address_url": server.address_url,
    }
    return config.parse(group_data("lab") | values)


@pytest.fixture
def provider(server: FakeCloudflare) -> LexiconProvider:
    return LexiconProvider("cloudflare", ZONE, TOKEN, {}, server.api_url)


@pytest.fixture
def wanted(settings: config.Settings) -> list[Record]:
    return wanted_records(settings, NEW, GIVEN)


@pytest.fixture
def old(server: FakeCloudflare) -> None:
    """The records as the old machine left them."""
    server.add_record(ZONE, NAME, "A", "198.51.100.7")
    server.add_record(ZONE, NAME, "AAAA", "2001:db8::7")
    server.add_record(ZONE, HOLDER, "TXT", f"minipc {OLD}")
    server.add_record(ZONE, ZONE, "MX", "mail.example.org")


def now(server: FakeCloudflare, kind: str) -> tuple[Any, ...]:
    record = server.the(NAME, kind)
    return record["content"], record["ttl"], server.the(HOLDER, "TXT")["content"]


# --- the move ------------------------------------------------------------------------------------------------------


def test_the_records_lead_to_the_new_machine(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None
) -> None:
    said: list[str] = []
    changed = dns_cutover.cutover(provider, wanted, said.append)
    assert now(server, "A") == ("198.51.100.8", 60, f"minipc {NEW}")
    assert now(server, "AAAA") == ("2001:db8::8", 60, f"minipc {NEW}")
    assert [str(change.wanted) for change in changed] == [f"{NAME} A", f"{NAME} AAAA"]
    assert said[0] == f"{NAME} A: 198.51.100.7 -> 198.51.100.8, ttl 300 -> 60 s, held by {OLD} -> {NEW}"
    assert said[-1] == "resolvers may answer the old address for up to 300 s"


def test_again_it_changes_nothing(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None
) -> None:
    dns_cutover.cutover(provider, wanted, print)
    before = len(server.changes())
    assert dns_cutover.cutover(provider, wanted, print) == []
    assert len(server.changes()) == before == 3


def test_missing_records_are_created(server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record]) -> None:
    said: list[str] = []
    dns_cutover.cutover(provider, wanted, said.append)
    assert now(server, "A") == ("198.51.100.8", 60, f"minipc {NEW}")
    assert said == [f"{NAME} A: create with 198.51.100.8, ttl 60 s", f"{NAME} AAAA: create with 2001:db8::8, ttl 60 s"]


def test_a_plan_changes_nothing(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None
) -> None:
    assert len(dns_cutover.plan(provider, wanted)) == 2
    assert server.changes() == []


def test_the_same_address_only_changes_hands(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record]
) -> None:
    """A machine replaced behind the same router: its TTL is nobody's business."""
    server.add_record(ZONE, NAME, "A", "198.51.100.8")
    server.add_record(ZONE, NAME, "AAAA", "2001:0db8:0::0008")
    server.add_record(ZONE, HOLDER, "TXT", f"minipc {OLD}")
    dns_cutover.cutover(provider, wanted, print)
    assert now(server, "A") == ("198.51.100.8", 300, f"minipc {NEW}")
    assert now(server, "AAAA") == ("2001:0db8:0::0008", 300, f"minipc {NEW}")
    assert dns_cutover.cutover(provider, wanted, print) == []


def test_a_proxied_record_keeps_its_proxy_and_ttl(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None
) -> None:
    server.the(NAME, "A").update(proxied=True, ttl=1)
    dns_cutover.cutover(provider, wanted, print)
    assert now(server, "A") == ("198.51.100.8", 1, f"minipc {NEW}")
    assert server.the(NAME, "A")["proxied"] is True


def test_other_records_stay(server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None) -> None:
    before = dict(server.the(ZONE, "MX"))
    dns_cutover.cutover(provider, wanted, print)
    assert server.the(ZONE, "MX") == before


# --- what stands in the way, found before the first change ---------------------------------------------------------


def test_a_cname_in_the_way(server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record]) -> None:
    server.add_record(ZONE, NAME, "CNAME", "elsewhere.example.net")
    with pytest.raises(DnsError, match=rf"{NAME} has a CNAME record \(elsewhere.example.net\)") as caught:
        dns_cutover.cutover(provider, wanted, print)
    assert f"remove the CNAME record of {NAME}" in caught.value.next_step
    assert server.changes() == []


def test_two_records_where_one_belongs(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None
) -> None:
    server.add_record(ZONE, NAME, "AAAA", "2001:db8::9")
    with pytest.raises(DnsError, match="has 2 AAAA records"):
        dns_cutover.cutover(provider, wanted, print)
    assert server.changes() == []


def test_a_machine_without_identity_is_refused(settings: config.Settings) -> None:
    with pytest.raises(RefusedError, match="no identity"):
        wanted_records(settings, None, GIVEN)


def test_an_unknown_address_names_the_record(settings: config.Settings) -> None:
    with pytest.raises(ConfigError, match=f"no address is known for {NAME} AAAA") as caught:
        wanted_records(settings, NEW, {"A": "198.51.100.8"})
    assert "--ipv6" in caught.value.next_step


# --- the proof -----------------------------------------------------------------------------------------------------


def test_a_change_that_did_not_stick_is_no_success(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None, no_waiting: list[float]
) -> None:
    server.ignores_changes = True
    with pytest.raises(DnsError) as caught:
        dns_cutover.cutover(provider, wanted, print)
    assert f"{NAME} A is 198.51.100.7, not 198.51.100.8" in caught.value.what
    assert f"{NAME} AAAA is 2001:db8::7" in caught.value.what
    assert no_waiting == [1, 4, 16]


@pytest.mark.parametrize(
    ("field", "said"),
    [("ttl", f"{NAME} A has ttl 300, not 60"), ("content", f"{NAME} A is 198.51.100.7, not 198.51.100.8")],
)
def test_a_change_that_stuck_in_part_is_no_success(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None, field: str, said: str
) -> None:
    server.ignores_fields.add(field)
    with pytest.raises(DnsError) as caught:
        dns_cutover.cutover(provider, wanted, print)
    assert said in caught.value.what


def test_a_creation_that_did_not_stick_is_no_success(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record]
) -> None:
    server.ignores_changes = True
    with pytest.raises(DnsError, match=f"{NAME} A is missing"):
        dns_cutover.cutover(provider, wanted, print)


def test_a_change_that_takes_a_moment_to_show(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None, no_waiting: list[float]
) -> None:
    server.delayed = 0
    server.changed = lambda: setattr(server, "delayed", 2)
    dns_cutover.cutover(provider, wanted, print)
    assert no_waiting == [1, 4]


def test_it_goes_on_where_it_was_cut_off(
    server: FakeCloudflare, provider: LexiconProvider, wanted: list[Record], old: None
) -> None:
    broken = (500, {}, b"")
    # Zone, list; zone, list; zone, holder; zone, first change; zone, list; then the second change fails.
    server.next_answers = [None] * 10 + [broken] * 4
    with pytest.raises(DnsError, match=f"could not change {NAME} AAAA"):
        dns_cutover.cutover(provider, wanted, print)
    assert now(server, "A")[0] == "198.51.100.8"
    assert now(server, "AAAA")[0] == "2001:db8::7"
    assert [str(change.wanted) for change in dns_cutover.cutover(provider, wanted, print)] == [f"{NAME} AAAA"]


# --- TTL -----------------------------------------------------------------------------------------------------------


def test_the_ttl_is_lowered_before_and_settled_after(
    server: FakeCloudflare, provider: LexiconProvider, settings: config.Settings, wanted: list[Record], old: None
) -> None:
    server.the(NAME, "AAAA")["ttl"] = 1
    assert len(dns_cutover.lower(provider, settings, print)) == 2
    assert now(server, "A") == ("198.51.100.7", 60, f"minipc {OLD}")
    assert now(server, "AAAA") == ("2001:db8::7", 60, f"minipc {OLD}")
    assert dns_cutover.lower(provider, settings, print) == []
    dns_cutover.cutover(provider, wanted, print)
    assert len(dns_cutover.settle(provider, settings, print)) == 2
    assert now(server, "A") == ("198.51.100.8", 300, f"minipc {NEW}")
    assert dns_cutover.settle(provider, settings, print) == []
    assert dns_cutover.plan(provider, wanted) == []


def test_a_ttl_that_is_lower_already_is_not_raised(
    server: FakeCloudflare, provider: LexiconProvider, settings: config.Settings
) -> None:
    server.add_record(ZONE, NAME, "A", "198.51.100.7", ttl=60)
    server.add_record(ZONE, NAME, "AAAA", "2001:db8::7", ttl=1, proxied=True)
    assert dns_cutover.lower(provider, settings, print) == []
    assert len(dns_cutover.settle(provider, settings, print)) == 1


# --- where the addresses come from ---------------------------------------------------------------------------------


def target(settings: config.Settings) -> Target:
    return Target("box", {"machine_identity": NEW}, settings)


def test_given_addresses_win_over_configured_ones(settings: config.Settings) -> None:
    fixed = settings.model_copy(update={"dns": settings.dns.model_copy(update={"ipv4": "198.51.100.1"})})
    assert dns_cutover.addresses_of(target(fixed), {}) == {"A": "198.51.100.1"}
    assert dns_cutover.addresses_of(target(fixed), GIVEN) == GIVEN


def test_the_machine_is_asked_for_what_is_missing(settings: config.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Done:
        def __init__(self, code: int) -> None:
            self.returncode, self.stdout, self.stderr = code, b"2001:db8::5\n", b"no route\n"

    def run(file: object, alias: str, command: str, timeout_s: float) -> Done:
        asked.append(command)
        return Done(len(asked) - 1)

    monkeypatch.setattr(dns_cutover.ssh, "write_config", lambda hosts: None)
    monkeypatch.setattr(dns_cutover.ssh, "run", run)
    following = settings.model_copy(update={"dns": settings.dns.model_copy(update={"follow": True})})
    known = dns_cutover.addresses_of(target(following), {"A": "198.51.100.8"})
    assert known == {"A": "198.51.100.8", "AAAA": "2001:db8::5"}
    assert asked[0].endswith("minipc.dns.follow /etc/minipc/dns.json --address AAAA")
    with pytest.raises(CouldNotVerifyError, match="box could not find its public address for AAAA: no route"):
        dns_cutover.addresses_of(target(following), {"A": "198.51.100.8"})


# --- the command ---------------------------------------------------------------------------------------------------

Run = Callable[..., Result]


@pytest.fixture
def run(settings: config.Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    known = Secrets({"dns.cloudflare_token": Secret("dns.cloudflare_token", TOKEN)})
    monkeypatch.setattr(dns_provider.secrets, "load", lambda environment, names: known)
    monkeypatch.setattr(dns_cli, "the_target", lambda environment, alias: target(settings))
    return lambda *arguments: CliRunner().invoke(dns_cli.dns, arguments)


def error_of(result: Result) -> MinipcError:
    assert isinstance(result.exception, MinipcError), result.output
    return result.exception


def test_the_whole_story(run: Run, server: FakeCloudflare, old: None) -> None:
    addresses = ("--ipv4", GIVEN["A"], "--ipv6", GIVEN["AAAA"])
    shown = run("show").output
    assert f"{NAME} A: 198.51.100.7, ttl 300 s, held by machine {OLD}" in shown
    lowered = run("lower")
    assert "wait 300 s before the cutover" in lowered.output
    planned = run("plan", *addresses)
    assert planned.exit_code == 2
    assert "2 changes pending" in planned.output
    moved = run("cutover", *addresses)
    assert moved.exit_code == 0
    assert "2 records changed and read back" in moved.output
    assert run("plan", *addresses).exit_code == 0
    assert "nothing to change" in run("cutover", *addresses).output
    assert "held by box" in run("show").output
    assert "ttl 60 -> 300 s" in run("settle").output
    for result in (lowered, planned, moved):
        assert TOKEN not in result.output


def test_show_tells_what_is_missing_in_the_way_or_too_much(run: Run, server: FakeCloudflare) -> None:
    assert f"{NAME} AAAA: no record" in run("show").output
    server.add_record(ZONE, NAME, "CNAME", "elsewhere.example.net")
    server.add_zone("example.net", TOKEN)
    shown = run("show").output
    assert f"{NAME} CNAME: elsewhere.example.net" in shown
    assert "the token can also change example.net: use a token for example.org only" in shown


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--ipv4", "2001:db8::1", "not an IPv4 address"),
        ("--ipv6", "198.51.100.1", "not an IPv6"),
        ("--ipv4", "x", "not an"),
    ],
)
def test_an_address_of_the_wrong_kind(run: Run, server: FakeCloudflare, option: str, value: str, said: str) -> None:
    result = run("cutover", option, value)
    assert result.exit_code == 2
    assert said in result.output
    assert server.seen == []


def test_a_refused_token(run: Run, server: FakeCloudflare) -> None:
    server.tokens.clear()
    error = error_of(run("show"))
    assert isinstance(error, SecretError)
    assert TOKEN not in str(error)


def test_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_cli, "the_target", lambda environment, alias: target(config.load("lab")))
    error = error_of(CliRunner().invoke(dns_cli.dns, ["show"]))
    assert isinstance(error, ConfigError)
    assert "dns_provider" in str(error)


def test_a_missing_token_is_named(settings: config.Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("MINIPC_STATE_DIR", str(tmp_path))
    from minipc.secrets.generate import generate

    generate("lab", entries=[])
    with pytest.raises(SecretError, match=r"dns\.cloudflare_token"):
        dns_provider.open_provider(settings)


def test_the_inventory_names_the_holder() -> None:
    """`machine_identity` is what the inventory calls it."""
    assert inventory.target("box", address="198.51.100.1")[1]["machine_identity"] is None
