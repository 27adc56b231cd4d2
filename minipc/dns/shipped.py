"""What of the DNS code runs on the machine, and where; apart, so that a converge doesn't load it."""

from __future__ import annotations

CODE = "/usr/local/lib/minipc"
SHIPPED = (
    "minipc/__init__.py",
    "minipc/errors.py",
    *(
        f"minipc/dns/{name}.py"
        for name in ("__init__", "address", "changes", "cloudflare", "exchange", "follow", "records", "reserved")
    ),
)
"""The modules that run on the machine, relative to the repository; they are placed below CODE."""
CONFIG_FILE = "/etc/minipc/dns.json"
ADDRESS_COMMAND = f"PYTHONPATH={CODE} python3 -P -m minipc.dns.follow {CONFIG_FILE} --address"
"""What the controller runs on the machine; the kind follows."""
