"""NetworkPolicies of a service's namespace: everything is denied but what the service file says.

Requests from the machine itself (the ingress, Prometheus, the kubelet's probes) come from the node that runs the API
server. K3s lets packets of a pod's own node pass; on another node of the cluster they come with an address of the
pod network, which is allowed here by name.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from minipc.config import Settings
from minipc.config.service import Destination, Service
from minipc.services.manifests import COMPONENT, DRILL, PART_OF, Object
from minipc.services.ports import redis_port

# Of K3s's first node, the mini PC, in the pod network that K3s has by default: flannel.1 and cni0.
SERVER_ADDRESSES = ("10.42.0.0/32", "10.42.0.1/32")
# What is not the internet: RFC 1918, carrier-grade NAT (RFC 6598), this host, link-local and multicast addresses.
PRIVATE = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
)
_DNS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}


def policies(service: Service, settings: Settings) -> list[Object]:
    """Return the NetworkPolicies of a service's namespace."""
    everything = _policy(service, "deny-by-default", {}, {"policyTypes": ["Ingress", "Egress"]})
    # The pods of a drill are in the same namespace, and must not reach the service.
    own = {"matchExpressions": [{"key": COMPONENT, "operator": "NotIn", "values": [DRILL]}]}
    peers = [{"podSelector": own}]
    egress = [_DNS, {"to": peers}, *_data(service, settings), *map(_destination, service.destinations)]
    found = [
        everything,
        _policy(
            service,
            "service",
            own,
            {"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": peers}], "egress": egress},
        ),
    ]
    found += [_from_the_machine(service, name, ports) for name, ports in _reached(service).items()]
    if service.postgres:
        scratch = {"to": [_address(settings)], "ports": [_tcp(settings.backups.drill_port)]}
        drill = {"matchLabels": {COMPONENT: DRILL}}
        found.append(_policy(service, "drill", drill, {"policyTypes": ["Egress"], "egress": [scratch]}))
    return found


def _from_the_machine(service: Service, name: str, ports: list[int]) -> Object:
    """Return what lets the ingress and Prometheus reach a process."""
    allowed = {"from": [{"ipBlock": {"cidr": each}} for each in SERVER_ADDRESSES], "ports": [*map(_tcp, ports)]}
    selector = {"matchLabels": {COMPONENT: name}}
    return _policy(service, f"from-the-machine-{name}", selector, {"policyTypes": ["Ingress"], "ingress": [allowed]})


def _reached(service: Service) -> dict[str, list[int]]:
    """Return the ports of each process that the machine reaches."""
    found: dict[str, list[int]] = {}
    for name, process in service.processes.items():
        front = service.front is not None and service.front[0] == name
        ports = {process.port if front else None, process.metrics.port if process.metrics else None} - {None}
        if ports:
            found[name] = sorted(port for port in ports if port)
    return found


def _data(service: Service, settings: Settings) -> list[Object]:
    """Return what lets pods reach the service's own database and Redis."""
    ports = [settings.postgres.port] if service.postgres else []
    ports += [redis_port(settings, service)] if service.redis else []
    return [{"to": [_address(settings)], "ports": [*map(_tcp, ports)]}] if ports else []


def _destination(destination: Destination) -> Object:
    network = destination.network
    block: Object = {"cidr": "0.0.0.0/0", "except": [*PRIVATE]}
    if network != "internet":
        block = {"cidr": str(ip_network(network))}
    ports = [{"protocol": protocol, "port": port} for port in destination.ports for protocol in ("TCP", "UDP")]
    return {"to": [{"ipBlock": block}], "ports": ports}


def _address(settings: Settings) -> Object:
    address = ip_address(settings.host.service_address)
    return {"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}


def _tcp(port: int) -> Object:
    return {"protocol": "TCP", "port": port}


def _policy(service: Service, name: str, selector: Object, spec: Object) -> Object:
    metadata = {"name": name, "namespace": service.name, "labels": {PART_OF: service.name}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {"podSelector": selector, **spec},
    }
