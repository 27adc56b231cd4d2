"""Public DNS: which machine the service's name leads to, and moving it to another one.

`records`, `changes`, `exchange`, `cloudflare`, `address`, `reserved` and `follow` also run on the machine itself, where
only the standard library and httpx are at hand: they import nothing else of minipc but `minipc.errors`.
"""
