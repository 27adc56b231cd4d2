"""Our own pyinfra operations: only what the stock ones can't do (docs/decisions/0003-placing-files.md)."""

from minipc.operations.artifacts import push
from minipc.operations.files import Absent, Content, Directory, File, Placed, SecretFile, place
from minipc.operations.packages import HOLD_STARTS, install
from minipc.operations.revert import arm, confirm
from minipc.operations.systemd import unit, units

__all__ = [
    "HOLD_STARTS",
    "Absent",
    "Content",
    "Directory",
    "File",
    "Placed",
    "SecretFile",
    "arm",
    "confirm",
    "install",
    "place",
    "push",
    "unit",
    "units",
]
