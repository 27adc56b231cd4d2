"""minipc: the library below the deploys and playbooks. Start reading at `minipc/cli/main.py` or `deploys/site.py`."""
