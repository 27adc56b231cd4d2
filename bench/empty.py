"""An empty deploy: the time that pyinfra needs to import, read the inventory and connect."""
