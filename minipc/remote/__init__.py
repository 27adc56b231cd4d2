"""Machines of the inventory: host keys, SSH connections and questions asked over them."""
