"""Everything, in the order in which a rebuild goes: host, network, data, service, public door.

    pyinfra inventory/production.py deploys/site.py

One line each, not a loop: by the lines they are called from pyinfra knows which operations of two machines are the
same. The list is the one of minipc/components.py (tests/unit/test_deploys.py holds them together).
"""

from pyinfra import host, local

from minipc.components import role_of
from minipc.operations.k3s import server_first

role = role_of(host.groups)

local.include("deploys/host.py")
if role == "mini":
    local.include("deploys/vpn.py")
local.include("deploys/firewall.py")
if role == "offsite":
    local.include("deploys/offsite.py")
    local.include("deploys/watcher.py")
if role == "mini":
    local.include("deploys/repositories.py")
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
    local.include("deploys/workload.py")
    local.include("deploys/argocd.py")
    local.include("deploys/edge.py")
    local.include("deploys/dns.py")
    local.include("deploys/alertmanager.py")
    local.include("deploys/prometheus.py")
    local.include("deploys/loki.py")
    local.include("deploys/syslog_ng.py")
    local.include("deploys/grafana.py")
local.include("deploys/release.py")
