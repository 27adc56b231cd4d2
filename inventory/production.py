"""Your machine. Edit the address, then enrol it: `minipc adopt minipc --fingerprint SHA256:…` (README)."""

from minipc.guards import refuse_empty_match
from minipc.inventory import target

# The machine that keeps the backups: any small Debian 13 host elsewhere. Enrol it the same way, then set
# backups_offsite = "offsite" in group_data/production.py. Import offsite_machine beside target.
#   production += [offsite_machine("offsite", address="203.0.113.20", key="~/.ssh/id_ed25519")]
#   offsite = ["offsite"]
offsite: list[str] = []

# Further machines of the cluster, for more pods (docs/reference/k3s_agent.md). Enrol each the same way, and set
# k3s_node_ip of the mini PC. Import agent_machine beside target.
#   production += [agent_machine("agent", address="192.168.1.11", server="minipc", key="~/.ssh/id_ed25519")]
#   k3s_agents = ["agent"]
k3s_agents: list[str] = []

production = [
    # REQUIRED: the address where its SSH answers, and your private key (None: SSH agent).
    target("minipc", address="192.168.1.10", key="~/.ssh/id_ed25519"),
]

refuse_empty_match(production, "production")
