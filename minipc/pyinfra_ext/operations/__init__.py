"""Our pyinfra operations: only what pyinfra's own operations cannot do (docs/decisions/0003-placing-files.md)."""

from minipc.pyinfra_ext.operations.artifacts import push
from minipc.pyinfra_ext.operations.files import Absent, Content, Directory, File, Placed, SecretFile, place
from minipc.pyinfra_ext.operations.machine_programs import programs, shell_program
from minipc.pyinfra_ext.operations.packages import HOLD_STARTS, install, install_announced
from minipc.pyinfra_ext.operations.revert import arm, confirm
from minipc.pyinfra_ext.operations.systemd import unit, units

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
    "install_announced",
    "place",
    "programs",
    "push",
    "shell_program",
    "unit",
    "units",
]
