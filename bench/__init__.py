"""Side-by-side measurements against Ansible, a plain shell script and testinfra as it comes: `make bench`.

What is measured and how: docs/reference/benchmarks.md.
"""
