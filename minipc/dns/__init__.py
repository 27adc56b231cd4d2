"""Public DNS: which machine the service's name leads to, and moving it to another one.

The modules in `minipc.dns.shipped.OURS` also run on the machine itself. There they have the standard library, lexicon,
requests and urllib3, and they import nothing else of minipc but `minipc.core.errors` and `reserved_addresses`.
"""
