"""Programs that run on the machines: backup, restore, drill, off-site copy, drift.

They use the standard library only, and run with the python3 of Debian 13. The deploys and the playbooks import the
schemas of their settings and results, so writer and reader share one class. This package imports nothing else of
minipc. `minipc/pyinfra_ext/operations/machine_programs.py` installs it.
"""
