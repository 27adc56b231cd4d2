"""Run the checks of `tests/verify` against a machine; port scans and canaries."""
