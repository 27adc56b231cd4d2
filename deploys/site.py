"""Converge everything, in the order of the components: host, network, data, service, ingress.

    pyinfra inventory/production.py deploys/site.py

One line for each component, not a loop. pyinfra orders the operations of several machines by the line numbers that they
are called from; in a loop, `host.loop` included, the line number inside the deploy file would come first, and the mini
PC would look for its backup before the off-site host serves it. `tests/unit/test_deploys.py` compares the lines with
`minipc/config/components.py`.
"""

from pyinfra import host, local

from minipc.config.components import role_of
from minipc.pyinfra_ext.operations.k3s import server_first

role = role_of(host.groups)

local.include("deploys/host.py")
if role == "mini":
    local.include("deploys/vpn.py")
local.include("deploys/firewall.py")
if role == "offsite":
    local.include("deploys/offsite.py")
if role == "mini":
    local.include("deploys/repositories.py")
    local.include("deploys/volumes.py")
    local.include("deploys/postgres.py")
    local.include("deploys/backups.py")
    local.include("deploys/redis.py")
if role != "offsite":
    local.include("deploys/images.py")
if role == "mini":
    local.include("deploys/k3s.py")
if role != "offsite":
    server_first()
if role == "agent":
    local.include("deploys/k3s_agent.py")
if role == "mini":
    local.include("deploys/services.py")
    local.include("deploys/argocd.py")
    local.include("deploys/edge.py")
    local.include("deploys/dns.py")
if role != "agent":
    local.include("deploys/alertmanager.py")
if role == "mini":
    local.include("deploys/prometheus.py")
if role == "offsite":
    local.include("deploys/watcher.py")
if role == "mini":
    local.include("deploys/loki.py")
    local.include("deploys/syslog_ng.py")
    local.include("deploys/grafana.py")
local.include("deploys/release.py")
