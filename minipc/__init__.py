"""minipc: the library below the deploys and playbooks. Start reading at `minipc/cli.py` or `deploys/site.py`."""
