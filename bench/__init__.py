"""Benchmarks against Ansible, a plain shell script and testinfra's default backend: `make bench`.

What is measured and how: docs/reference/benchmarks.md.
"""
