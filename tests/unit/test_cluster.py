"""A cluster of several machines: who belongs to it, what the firewall and the database let in for them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from minipc.config import load
from minipc.config.components import role_of
from minipc.core.environment import LAB
from minipc.core.ports import POD_WIREGUARD
from minipc.pyinfra_ext import deploying
from minipc.pyinfra_ext.operations.files import File, render
from minipc.remote import inventory
from tests.unit import firewall_rules
from tests.unit.deploy_run import order_of_both
from tests.unit.firewall_rules import chain

INTERFACES = {"firewall_public_interfaces": ["wan"], "firewall_operator_interfaces": ["lan"]}
SETTINGS = load("lab", host_operator_keys=[], **INTERFACES)
NO_DOOR: dict[str, Any] = {"firewall_public_tcp": [], "firewall_public_udp": [], "edge_http3": False}
NODES = ["10.77.0.20", "10.77.0.21"]


class Machines(SimpleNamespace):
    """An inventory as pyinfra has it."""

    def __iter__(self):
        return iter(self.hosts.values())


def machine(name: str, node_ip: str | None = None, server: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, groups=[], data={"k3s_node_ip": node_ip, "k3s_server": server})


@pytest.fixture
def on(monkeypatch):
    """Stands on one of the machines."""

    def stand(name: str, *machines: SimpleNamespace) -> None:
        hosts = {each.name: each for each in machines}
        here = hosts[name]
        monkeypatch.setattr(deploying, "context", SimpleNamespace(host=here, inventory=Machines(hosts=hosts)))
        settings = SimpleNamespace(
            k3s=SimpleNamespace(server=here.data["k3s_server"], node_ip=here.data["k3s_node_ip"])
        )
        monkeypatch.setattr(deploying, "config", lambda: settings)

    return stand


CLUSTER = (
    machine("mini", "10.0.0.1"),
    machine("a", "10.0.0.2", "mini"),
    machine("b", "10.0.0.3", "mini"),
    machine("offsite"),
    machine("other", "10.0.0.8"),
    machine("others", "10.0.0.9", "other"),
)


@pytest.mark.parametrize(
    ("name", "nodes", "server", "agents"),
    [
        ("mini", {"10.0.0.2", "10.0.0.3"}, None, {"a": "10.0.0.2", "b": "10.0.0.3"}),
        ("a", {"10.0.0.1", "10.0.0.3"}, "10.0.0.1", {"a": "10.0.0.2", "b": "10.0.0.3"}),
        ("others", {"10.0.0.8"}, "10.0.0.8", {"others": "10.0.0.9"}),
        ("offsite", set(), None, {}),
    ],
)
def test_a_machine_knows_the_others_of_its_cluster(on, name, nodes, server, agents):
    on(name, *CLUSTER)
    assert set(deploying.cluster_nodes()) == nodes
    assert deploying.cluster_server() == server
    assert deploying.cluster_agents() == agents


@pytest.mark.parametrize("name", ["mini", "agent"])
def test_a_server_with_agents_needs_an_address_of_its_own(on, name):
    on(name, machine("mini"), machine("agent", "10.0.0.2", "mini"))
    with pytest.raises(SystemExit) as stopped:
        deploying.cluster_nodes()
    assert stopped.value.code == 3


def test_a_server_without_agents_needs_none(on):
    on("mini", machine("mini"))
    assert deploying.cluster_nodes() == []
    assert deploying.node_interface() is None


def test_an_agent_of_nobody_is_refused(on):
    on("agent", machine("agent", "10.0.0.2", "mini"))
    with pytest.raises(SystemExit) as stopped:
        deploying.cluster_server()
    assert stopped.value.code == 3


def test_the_lists_of_the_inventory_give_roles():
    assert [role_of(lists) for lists in (["lab"], ["lab", "offsite"], ["k3s_agents", "lab"])] == [
        "mini",
        "offsite",
        "agent",
    ]


def test_a_list_gives_a_machine_its_role(tmp_path, monkeypatch):
    path = tmp_path / "lab.py"
    path.write_text(
        "from minipc.remote.inventory import agent_machine, target\n"
        "lab = [target('mini', '10.0.0.1'), agent_machine('a', '10.0.0.2', server='mini', host_operator_keys=[])]\n"
        "k3s_agents = ['a']\n"
    )
    monkeypatch.setattr(type(LAB), "inventory_file", path)
    mini, agent = inventory.targets(LAB)
    assert (mini.role, agent.role, agent.settings.k3s.server) == ("mini", "agent", "mini")
    assert inventory.the_target(LAB) == mini


def test_an_agent_begins_when_its_server_is_up(monkeypatch):
    """Both converged at once; pyinfra does the operations of two machines side by side."""
    order = order_of_both(monkeypatch)
    steps = [
        ("k3s", "Wait until the node is ready"),
        ("k3s_agent", "Wait until the server is up"),
        ("k3s_agent", "Start the K3s agent"),
        ("release", "Record the installed release"),
    ]
    assert sorted(steps, key=order.index) == steps


# --- what is let in -------------------------------------------------------------------------------------------------


def rules(nodes: list[str], role: str = "mini", **settings: Any) -> str:
    found = load("lab", host_operator_keys=[], **INTERFACES, **settings)
    mini = role == "mini"
    own = {"vpn": found.vpn if mini else None, "data_is_here": mini, "nodes": nodes, "outer": ["wan", "lan"]}
    own["server"] = None if mini else NODES[0]
    return firewall_rules.rules(found, operator_ipv6=[], near_ipv6=[], repository=[], **own)


def text(component: str, name: str, values: dict[str, Any]) -> str:
    entry = render(component, File(name, "/x"), values)
    assert isinstance(entry, File)
    assert entry.content is not None
    return entry.content.decode()


def test_the_other_nodes_reach_the_cluster_and_the_data_and_no_more():
    ruleset = rules(NODES)
    assert chain(ruleset, "nodes") == [
        "udp dport 8472 accept",
        "tcp dport 10250 accept",
        "tcp dport 6443 accept",
        "ip daddr 10.88.0.1 tcp dport { 5432, 6379 } accept",
    ]
    let_in = chain(ruleset, "input")
    assert 'iifname { "lan" } ip saddr { 10.77.0.20, 10.77.0.21 } jump nodes' in let_in
    # A pod there has its node's address, which is one of the operator's network.
    (operator,) = [line for line in let_in if line.endswith("jump operator")]
    assert "ip saddr != { 10.77.0.20, 10.77.0.21 }" in operator


def test_pods_reach_the_api_on_another_node_and_nothing_else_near_the_operator():
    out = chain(rules(NODES, "agent", **NO_DOOR), "from_pods")
    assert out[1:] == [
        # The mini PC may be the way there.
        "ip daddr 10.99.0.0/24 counter drop",
        "ip6 daddr fd99:6d69:6e69::/64 counter drop",
        "ip daddr { 10.77.0.20, 10.77.0.21 } tcp dport 6443 accept",
        "ip daddr { 10.77.0.0/24 } meta l4proto { tcp, udp } th dport 53 accept",
        "ip daddr { 10.77.0.0/24 } counter drop",
        "accept",
    ]


def test_an_agent_lets_in_what_nodes_need():
    ruleset = rules(NODES, "agent", **NO_DOOR)
    assert chain(ruleset, "nodes") == [
        "udp dport 8472 accept",
        "tcp dport 10250 accept",
        "ip saddr 10.77.0.20 tcp dport 9100 accept",
    ]
    assert not [line for line in chain(ruleset, "input") if "wan" in line]
    assert "chain pods" not in ruleset
    assert 'iifname { "cni0", "flannel.1", "flannel-wg" } jump from_pods' in chain(ruleset, "forward")


@pytest.mark.parametrize(("nodes", "role"), [([], "mini"), (NODES, "mini"), (NODES, "agent")])
def test_the_rules_are_valid(nodes, role):
    if not shutil.which("nft"):
        pytest.skip("NOT EXERCISED: no nft here")
    public = {} if role == "mini" else NO_DOOR
    done = subprocess.run(
        ["unshare", "-rn", "nft", "-c", "-f", "-"], input=rules(nodes, role, **public), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_machine_alone_lets_nobody_in_as_a_node():
    assert "nodes" not in rules([])
    assert not {"8472", "10250"} & set(re.findall(r"\d+", rules([])))


def test_the_database_asks_the_other_nodes_for_a_password():
    values = {"host": SETTINGS.host, "postgres": SETTINGS.postgres}
    alone, with_nodes = (text("postgres", "pg_hba.conf.j2", values | {"nodes": nodes}) for nodes in ([], NODES))
    added = [line.split() for line in with_nodes.splitlines() if line not in alone.splitlines()]
    roles = "parking_owner,parking"
    assert added == [["host", "parking", roles, f"{node}/32", "scram-sha-256"] for node in NODES]


def test_each_role_gets_into_its_own_database_only():
    """Nothing is said for `all` but the superuser's peer login; who matches no line is refused."""
    values = {"host": SETTINGS.host, "postgres": SETTINGS.postgres, "nodes": []}
    rules = [line.split() for line in text("postgres", "pg_hba.conf.j2", values).splitlines() if line[0] != "#"]
    assert [rule for rule in rules if "all" in rule[1:3] and rule[-1] != "reject"] == [
        ["local", "all", "postgres", "peer"]
    ]
    others = {(rule[1], role) for rule in rules for role in rule[2].split(",") if role != "postgres"}
    assert others == {
        ("parking", "parking_owner"),
        ("parking", "parking"),
        ("parking", "parking_reader"),
        ("minipc", "minipc"),
        ("postgres", "monitoring"),
    }
    peers = [rule for rule in rules if rule[3] == "peer"]
    assert {rule[0] for rule in peers} == {"local"}
    assert [rule for rule in rules if rule[2] in ("minipc", "parking_reader") and rule not in peers] == []


def test_on_an_agent_the_service_address_is_a_way_to_the_server():
    def unit(server: str | None) -> str:
        return text("host", "minipc-service-address.service.j2", {"host": SETTINGS.host, "server": server})

    assert unit("10.0.0.1").count("ip route replace 10.88.0.1/32 via 10.0.0.1") == 2
    assert "ExecStart=/usr/sbin/ip address replace 10.88.0.1/32 dev lo\n" in unit(None)
    assert " lo" not in unit("10.0.0.1")


@pytest.mark.parametrize("component", ["k3s", "k3s_agent"])
@pytest.mark.parametrize("encrypted", [True, False])
def test_between_machines_pods_talk_through_wireguard_where_the_kernel_has_it(component, encrypted):
    """On a port that is not the VPN's: two interfaces cannot have the same."""
    found = load("lab", host_operator_keys=[], k3s_node_ip="10.77.0.10")
    values = {"k3s": found.k3s, "node_name": "mini", "node_interface": "lan", "names": [], "server": "10.77.0.10"}
    config = yaml.safe_load(text(component, "config.yaml.j2", values | {"encrypted": encrypted}))
    assert config.get("flannel-conf") == ("/etc/rancher/k3s/flannel.json" if encrypted else None)
    assert config.get("flannel-backend") == ("wireguard-native" if encrypted and component == "k3s" else None)
    flannel = json.loads(text("k3s", "flannel.json.j2", {"pod_port": POD_WIREGUARD}))
    assert flannel["Backend"] == {"Type": "wireguard", "ListenPort": POD_WIREGUARD, "PersistentKeepaliveInterval": 25}
    assert flannel["Network"] in found.postgres.client_networks
    assert found.vpn.port != POD_WIREGUARD
    assert f"udp dport {POD_WIREGUARD} accept" in firewall_rules.rules(found, nodes=NODES, pod_port=POD_WIREGUARD)


def test_a_cluster_of_one_machine_is_left_as_it_is(on, monkeypatch):
    on("mini", machine("mini"))
    assert not deploying.cluster_is_encrypted()
