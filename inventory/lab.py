"""The disposable machines that are up. `minipc lab up` makes one; these lists follow. `offsite-NAME` keeps the backups
of `NAME`, and of any machine whose name begins with `NAME-`; `agent-NAME` joins the cluster of `NAME`."""

from minipc.inventory import refuse_empty_match
from rehearsal.lab.inventory import is_agent, is_offsite, lab_hosts

lab = lab_hosts()
offsite = [name for name, _ in lab if is_offsite(name)]
k3s_agents = [name for name, _ in lab if is_agent(name)]

refuse_empty_match(lab, "lab")
