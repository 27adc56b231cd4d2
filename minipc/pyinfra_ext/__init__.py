"""Additions to pyinfra: operations, facts, guards and helpers for deploy files."""
