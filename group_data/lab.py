"""Disposable machines: what differs from production, and why."""

from minipc.config.services import own_or_example

environment = "lab"

# inventory/lab.py adds the key that the lab made; nobody else may log in.
host_operator_keys = []
# Small disks.
host_journal_max_mb = 256

# The lab's two sides are two interfaces.
firewall_public_interfaces = ["public0"]
firewall_operator_interfaces = ["operator0"]
firewall_operator_networks = ["10.77.0.0/24", "fd77:6c61:6200::/64"]
# A machine for K3s has the cluster's ports, too (inventory/lab.py).
firewall_operator_tcp = [22]
# Checks and tests reach machines beside the tunnel, too.
firewall_operator_access = "networks"
# inventory/lab.py adds the lab's own client and each machine's tunnel networks.
vpn_peers = []

redis_maxmemory_mb = 32
# A lab machine sees all of the controller's memory, and shares it with others.
postgres_shared_buffers_percent = 1

# Where K3s is not available podman runs the same images, and the report says so.
services_runtime = "podman"
# Your own services; as long as services/ has none, the example.
services_folders = own_or_example("services", "examples/parking/services")

# Its own overlay of the deploy repository, which the off-site machine hosts.
argocd_path = "root/lab"

# No public ACME server is reachable from the lab; a test brings one of its own.
edge_acme = "internal"
# So that each rehearsal tries it.
edge_http3 = True
firewall_public_udp = [443]
# A check waits for them.
edge_header_timeout_s = 3
edge_body_timeout_s = 5

# Nobody is notified of what happens in the lab; tests of alerts add channels to receivers of their own.
alertmanager_channels = []
