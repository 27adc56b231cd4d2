"""What of the DNS code runs on the machine, and where; apart, so that a converge doesn't load it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from minipc.core.paths import ROOT

CODE = "/usr/local/lib/minipc"
OURS = (
    "minipc/__init__.py",
    "minipc/core/__init__.py",
    "minipc/core/errors.py",
    "minipc/core/reserved_addresses.py",
    *(f"minipc/dns/{name}.py" for name in ("__init__", "address", "changes", "follow", "lexicon_provider", "records")),
)
CONFIG_FILE = "/etc/minipc/dns.json"
ADDRESS_COMMAND = f"PYTHONPATH={CODE} python3 -P -m minipc.dns.follow {CONFIG_FILE} --address"
"""What the controller runs on the machine; the kind follows."""


def shipped(provider: str) -> dict[str, bytes]:
    """Return the files that are placed below CODE, by their path there: our modules, and what they need of lexicon.

    Debian 13 has no package of lexicon. So the machine gets the locked version that the controller has, of that the
    one provider. Lexicon's own `__init__` would load its command line; the machine gets an empty one.
    """
    spec = find_spec("lexicon")
    if spec is None or spec.origin is None:
        raise RuntimeError("dns-lexicon is not installed")
    lexicon = Path(spec.origin).parent
    theirs = ("config", "exceptions", "interfaces", "_private/__init__", "_private/discovery")
    providers = (f"_private/providers/{name}" for name in ("__init__", *sorted({"cloudflare", provider})))
    return (
        {path: (ROOT / path).read_bytes() for path in OURS}
        | {"lexicon/__init__.py": b""}
        | {f"lexicon/{name}.py": (lexicon / f"{name}.py").read_bytes() for name in (*theirs, *providers)}
    )
