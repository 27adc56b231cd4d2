"""The disposable machines that are up. `minipc lab up` makes one; this list follows."""

from minipc.guards import refuse_empty_match
from minipc.lab.inventory import lab_hosts

lab = lab_hosts()

refuse_empty_match(lab, "lab")
