"""Your machine. Every REQUIRED key of all.py has its place here; replace the examples."""

from minipc.vpn.peers import read_peers

environment = "production"

# Lines of your .pub files.
host_operator_keys = ["ssh-ed25519 AAAA-replace-with-your-public-key you@laptop"]

# `ip -br link` on the machine shows its interfaces. One network card: name it twice.
firewall_public_interfaces = ["enp1s0"]
firewall_operator_interfaces = ["enp1s0"]
firewall_operator_networks = ["192.168.1.0/24"]

# Kept by `minipc vpn add NAME` and `minipc vpn revoke NAME` in inventory/vpn_peers.json.
vpn_peers = read_peers()
# SSH, the cluster's API and ArgoCD through the VPN only. Until then these networks reach them, and each report says so.
# It may be set for the first converge, once this controller has a tunnel: docs/howto/vpn.md.
# firewall_operator_access = "vpn"

edge_domain = "service.example.org"

# The machine in `offsite` that keeps the backups. Without one no data outlives this machine.
# backups_offsite = "offsite"
