"""Your machine. Every REQUIRED key of all.py has its place here. `minipc init` replaces the examples."""

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
# As soon as the machine's address in inventory/production.py is one in the VPN, SSH, the cluster's API and ArgoCD are
# reached through the VPN only. Until then these networks reach them, and each report says so: docs/howto/vpn.md.

# The machine in `offsite` that keeps the backups. Without one no data outlives this machine.
# backups_offsite = "offsite"
