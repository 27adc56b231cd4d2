"""Every tunable, once: REQUIRED or OPTIONAL, unit, default and reason.

`production.py` and `lab.py` beside this file override single keys. Rules: `minipc/config/schema.py`.
Check with `minipc config`.
"""

# --- secrets: where they are kept (docs/reference/secrets.md) -------------------------------------------------------
# OPTIONAL. "age": a file in the repository, encrypted, no server needed; "vault": Vault or OpenBao, KV version 2. The
# lab always has its own age file.
secrets_backend = "age"
# OPTIONAL. Public keys (age1…) that may open the age file besides the operator's own: a second person, a safe.
secrets_age_recipients = []
# OPTIONAL. How to reach Vault, a dict; "url" is required in it, docs/reference/secrets.md lists the other keys. Needed
# for the backend "vault" and for `minipc secrets copy`. Credentials are never here.
secrets_vault = None

# --- host: Debian itself -------------------------------------------------------------------------------------------
# OPTIONAL. Host name; shows in prompts, logs and metrics.
host_name = "minipc"
# OPTIONAL. IANA time zone. UTC: logs of two machines can be compared without thinking.
host_timezone = "Etc/UTC"
# OPTIONAL. Base URL of a Debian mirror; None keeps the sources as the installer set them.
host_apt_mirror = None
# OPTIONAL. The same for security updates; only used together with host_apt_mirror.
host_apt_security_mirror = None
# OPTIONAL. The person's account: logs in by key, becomes root by sudo. Not "operator": Debian has a group of that name.
host_operator_user = "ops"
# REQUIRED in production.py: public keys (lines of .pub files) that may log in as the operator and, from the operator
# side only, as root to converge.
host_operator_keys = []
# OPTIONAL. Days the journal is kept. 30: an incident found at the end of the month can still be read.
host_journal_days = 30
# OPTIONAL. Size limit of the journal in MB; whichever limit is reached first counts, so give 30 days room.
host_journal_max_mb = 4096
# OPTIONAL. The address (a /32 on `lo`) where PostgreSQL and Redis listen for the cluster: works on every kernel and
# exists before any network does.
host_service_address = "10.88.0.1"
# OPTIONAL. More sysctls, name -> value, on top of those in templates/host/sysctl.conf.j2.
host_sysctls = {}
# OPTIONAL. Time of day (HH:MM, host_timezone) of the reboot that a security update asks for; None: never by itself.
host_reboot_at = "04:30"

# --- firewall: which side is which ---------------------------------------------------------------------------------
# REQUIRED in production.py: interfaces where the public arrives (a router's port forwarding counts as public).
firewall_public_interfaces = []
# REQUIRED in production.py: interfaces where the operator arrives. May be the same: the source networks decide too.
firewall_operator_interfaces = []
# REQUIRED in production.py: source networks of the operator side, CIDR.
firewall_operator_networks = []
# OPTIONAL. TCP ports open to everyone. 80 only redirects.
firewall_public_tcp = [80, 443]
# OPTIONAL. TCP ports open to the operator side.
firewall_operator_tcp = [22]

# --- postgres: everything that must not be lost --------------------------------------------------------------------
# OPTIONAL. TCP port.
postgres_port = 5432
# OPTIONAL. Databases and their owners; an owner must be among the roles.
postgres_databases = [{"name": "workload", "owner": "workload"}]
# OPTIONAL. Login roles. The password of NAME is the secret `postgres.password.NAME`.
postgres_roles = [
    {"name": "workload", "memberships": []},
    {"name": "monitoring", "memberships": ["pg_monitor"]},
]
# OPTIONAL. Networks whose clients may log in (with a password): the cluster's pods. K3s's default pod network.
postgres_client_networks = ["10.42.0.0/16"]
# OPTIONAL. Share of the machine's memory for shared_buffers, percent. 15 leaves room for K3s beside it.
postgres_shared_buffers_percent = 15
# OPTIONAL. Connections. 100 is PostgreSQL's own default; pools in the service keep it small.
postgres_max_connections = 100
# OPTIONAL. Statements slower than this are logged, milliseconds.
postgres_slow_statement_ms = 500

# --- redis: the cache ----------------------------------------------------------------------------------------------
# OPTIONAL. TCP port.
redis_port = 6379
# OPTIONAL. Memory for data, MB; beyond it the least recently used keys go (allkeys-lru).
redis_maxmemory_mb = 256
# OPTIONAL. ACL users. The password of NAME is the secret `redis.password.NAME`. Keys are patterns.
redis_users = [
    {"name": "workload", "keys": ["workload:*"], "commands": ["+@all", "-@dangerous", "-@admin"]},
    {
        "name": "monitoring",
        "keys": [],
        "commands": ["-@all", "+ping", "+info", "+config|get", "+client|list", "+slowlog", "+latency"],
    },
]

# --- workload: the service -----------------------------------------------------------------------------------------
# OPTIONAL. Where it runs: "k3s", or "stand-in" (systemd units; the lab only, where K3s can't be had).
workload_runtime = "k3s"
# OPTIONAL. Port of the API on 127.0.0.1 (a NodePort where K3s runs it).
workload_port = 30080
# OPTIONAL. A worker whose heartbeat is older makes /api/health non-200, seconds.
workload_worker_stale_s = 600
# OPTIONAL. Loopback ports of the workers' metrics.
workload_metrics_ports = {"ingest": 9201, "forecast": 9202, "push": 9203}
# OPTIONAL. Report errors to Sentry; needs the secret `sentry.dsn`.
workload_sentry = False

# --- edge: the public door -----------------------------------------------------------------------------------------
# REQUIRED in production.py: the public name.
edge_domain = None
# OPTIONAL. Certificates: "production" or "staging" (ACME), "internal" (Caddy's own CA; the lab).
edge_acme = "production"
# OPTIONAL. Contact for the ACME account; None: none is given.
edge_acme_email = None
# OPTIONAL. Where the API answers. The NodePort on loopback.
edge_upstream = "127.0.0.1:30080"
# OPTIONAL. Days access logs are kept on disk.
edge_log_days = 30

# --- dns: where the public name leads (docs/reference/dns.md) ------------------------------------------------------
# OPTIONAL. "none": the records are kept by hand; "cloudflare": `minipc dns cutover` sets them. The token is the secret
# `dns.cloudflare_token`.
dns_provider = "none"
# REQUIRED unless the provider is "none": the zone, such as "example.org".
dns_zone = None
# REQUIRED unless the provider is "none": the names that lead to this machine, each {"name": "…", "type": "A" or "AAAA"}.
dns_records = []
# OPTIONAL. How long resolvers keep an answer, seconds. 300: after a rebuild elsewhere nobody waits longer than that.
dns_ttl_s = 300
# OPTIONAL. The same around a cutover. 60 is the least that every plan of Cloudflare allows.
dns_cutover_ttl_s = 60
# OPTIONAL. The machine's public IPv4 address where it is fixed; None: it is given to the cutover, or looked up.
dns_ipv4 = None
# OPTIONAL. The same for IPv6.
dns_ipv6 = None
# OPTIONAL. The public address changes by itself: a timer on the machine keeps the records in line.
dns_follow = False
# OPTIONAL. How often the timer looks, seconds.
dns_follow_every_s = 300
# OPTIONAL. Who tells the machine its public address: the bare address, or a line ip=ADDRESS.
dns_address_url = "https://cloudflare.com/cdn-cgi/trace"
# OPTIONAL. Where the provider's API answers; only tests change it.
dns_api_url = "https://api.cloudflare.com/client/v4"
