"""An empty deploy: what pyinfra takes to import, read the inventory and connect. The floor of a converge."""
