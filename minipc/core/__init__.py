"""Shared foundations: errors, paths, formatting, private files, processes. Imports no other package of ours."""
