"""Your machine. `minipc init` fills this file in; or edit it, then `minipc adopt minipc --fingerprint SHA256:…`."""

from minipc.inventory import refuse_empty_match, target

# Those in `production` that keep backups. REQUIRED for a rebuild: without one no data outlives its machine.
# `minipc init` adds it: docs/howto/first-machine.md.
offsite: list[str] = []

# Those in `production` that are further machines of the cluster, for more pods: docs/reference/k3s_agent.md.
k3s_agents: list[str] = []

production = [
    # REQUIRED: the address where its SSH answers, and your private key (None: SSH agent).
    target("minipc", address="192.168.1.10", key="~/.ssh/id_ed25519"),
]

refuse_empty_match(production, "production")
