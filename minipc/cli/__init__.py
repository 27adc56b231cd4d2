"""The command line: one module for each group of commands. A command calls one function; that decides the exit code.

Commands import what they need when they run. Measured on two cores: `minipc status --help` takes 0.2 s, and 1.0 s if
its module imports the playbooks when it is loaded.
"""
