"""The break-glass bundle: one sealed file with everything that a rebuild needs in addition to a clean clone."""
