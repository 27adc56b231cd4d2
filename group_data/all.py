"""Every tunable, once: REQUIRED or OPTIONAL, unit, default and reason. Ports that are none: `minipc/ports.py`.

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

# --- bundle: what a rebuild needs, off the box (docs/reference/bundle.md) ------------------------------------------
# OPTIONAL. A break-glass bundle older than this fails `minipc bundle check`, days. 90: its passphrase is typed, and so
# remembered, four times a year.
bundle_max_age_days = 90

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
# OPTIONAL. A change of SSH, VPN or firewall that no new connection confirms is taken back after so many seconds. 60 is
# how long somebody who has locked themselves out waits.
host_confirm_within_s = 60
# OPTIONAL. Time of day (HH:MM, host_timezone) of the reboot that a security update asks for; None: never by itself.
host_reboot_at = "04:30"

# --- vpn: the operator's way in (docs/reference/vpn.md) -------------------------------------------------------------
# OPTIONAL. UDP port of WireGuard, its usual one, open to everyone: it answers nobody without a peer's key.
vpn_port = 51820
# OPTIONAL. Address or name where peers reach that port; None: edge_domain.
vpn_endpoint = None
# OPTIONAL. The tunnel's IPv4 network; the machine has its first address. Must not overlap the operator's networks.
vpn_network = "10.99.0.0/24"
# OPTIONAL. The same for IPv6.
vpn_network_ipv6 = "fd99:6d69:6e69::/64"
# OPTIONAL. Peers send a packet after so many quiet seconds, so that a router between keeps the way open; 0: never.
# 25 is what WireGuard's manual suggests.
vpn_keepalive_s = 25
# OPTIONAL. What listens on loopback only and answers through the VPN, at the same port: name -> TCP port. These
# two are fixed (minipc/ports.py).
vpn_services = {"prometheus": 9090, "alertmanager": 9093}
# OPTIONAL. Who may connect: name, public_key, allowed_ips. `minipc vpn add NAME` keeps the list of production.py.
vpn_peers = []

# --- firewall: which side is which ---------------------------------------------------------------------------------
# REQUIRED in production.py: interfaces where the public arrives (a router's port forwarding counts as public).
firewall_public_interfaces = []
# REQUIRED in production.py: interfaces where the operator arrives. May be the same: the source networks decide too.
firewall_operator_interfaces = []
# REQUIRED in production.py: source networks of the operator side, CIDR.
firewall_operator_networks = []
# OPTIONAL. Where the operator's ports answer: "networks": to firewall_operator_networks and through the VPN; "vpn":
# through the VPN only (docs/howto/vpn.md). The converge that closes the networks comes in through the tunnel, or fails.
firewall_operator_access = "networks"
# OPTIONAL. TCP ports open to everyone. 80 only redirects.
firewall_public_tcp = [80, 443]
# OPTIONAL. UDP ports open to everyone, beside vpn_port; HTTP/3 (edge_http3) needs 443.
firewall_public_udp = []
# OPTIONAL. TCP ports open to the operator. 6443: the cluster's API; 8443: ArgoCD (change argocd_port with it).
firewall_operator_tcp = [22, 6443, 8443]
# OPTIONAL. Interfaces where the cluster's pods are: the only ones whose packets are forwarded.
firewall_pod_interfaces = ["cni0", "flannel.1"]
# OPTIONAL. TCP ports of the machine that pods reach, beside PostgreSQL and Redis on the service address. 6443: the API.
firewall_pod_tcp = [6443]
# OPTIONAL. New connections to the public ports from one client (IPv6: a /64), a second; twice as many in a burst.
# 100: a household behind one address loads a page with ease.
firewall_client_new_per_s = 100
# OPTIONAL. Open connections to the public ports from one client. 256: a browser opens six, and a household shares them.
firewall_client_connections = 256

# --- postgres: everything that must not be lost --------------------------------------------------------------------
# OPTIONAL. TCP port. PostgreSQL's own.
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
# OPTIONAL. A machine without a database, but with a backup of one: "refuse" (a lost database is never answered by an
# empty one), "restore", or "restore-incomplete" (also over a gap in WAL). `minipc rebuild` sets it; leave it.
postgres_from_backup = "refuse"

# --- offsite: the second machine, where the backups are ------------------------------------------------------------
# OPTIONAL. Address or name where the mini PC reaches the off-site machine; None: the one in the inventory.
offsite_address = None
# OPTIONAL. TCP port of its SFTP server for pgBackRest (an SSH server of its own, apart from the operator's). Free.
offsite_sftp_port = 2222
# OPTIONAL. TCP port of its restic server (TLS). The server's own.
offsite_rest_port = 8000
# OPTIONAL. When copies are taken that the mini PC's own credentials can't reach (systemd OnCalendar). Four a day: a
# thief of the credentials destroys at most six hours.
offsite_copies_calendar = "00/6:15"
# OPTIONAL. Days those copies are kept. 30: drills try each repository within two weeks, so damage is noticed in time.
offsite_copies_days = 30
# OPTIONAL. What the copies leave free for the living repository, which is on the same disk, MB. 2048: a day of a quiet
# machine's WAL and more.
offsite_free_mb = 2048
# OPTIONAL. It also hosts the deploy repository, read-only for ArgoCD. False: it is elsewhere (argocd_repository).
offsite_deploy_repository = False

# --- watcher: the service, seen from outside (docs/reference/watcher.md) -------------------------------------------
# OPTIONAL. What is asked; None: https://, edge_domain and /api/health.
watcher_url = None
# OPTIONAL. Address that is asked instead of the one that the public name leads to; None: the name's, so that DNS is
# watched, too.
watcher_address = None
# OPTIONAL. How often it asks, seconds. 60: with watcher_failures the outage is told within two minutes and a half.
watcher_interval_s = 60
# OPTIONAL. How long it waits for the answer, seconds. 10: a user has given up by then.
watcher_timeout_s = 10
# OPTIONAL. After how many failures in a row it tells. 2: one lost packet wakes nobody.
watcher_failures = 2
# OPTIONAL. It tells again after this time, as long as it lasts, seconds. 6 hours: a night doesn't hide it.
watcher_repeat_s = 21600
# OPTIONAL. TCP port where it takes the machine's ping (TLS). Free.
watcher_ping_port = 8010
# OPTIONAL. It shouts when no ping came for so long, seconds; None: none is expected. Alertmanager pings every 5 minutes
# once alertmanager_watchdog is set.
watcher_ping_grace_s = None
# OPTIONAL. It tells when the off-site machine has less of its disk left, percent.
watcher_disk_free_percent = 10
# OPTIONAL. It tells when no copy of the backups went well for so long, seconds; None: no copies are on that machine.
# 13 hours: two of offsite_copies_calendar in a row.
watcher_copy_age_s = 46800
# OPTIONAL. Who hears of it: "webhook" and "ntfy" (addresses are the secrets watcher.webhook_url, watcher.ntfy_url),
# "email", "journal". Not a channel that depends on the machine. "journal" alone reaches nobody who doesn't look.
watcher_channels = ["journal"]
# REQUIRED with "email": a dict with server, port (STARTTLS), user, sender and to; the secret is watcher.email_password.
watcher_email = None

# --- backups: what brings the data back ----------------------------------------------------------------------------
# OPTIONAL. The off-site machine's name in the inventory; None: backups stay on the mini PC and every report says so.
backups_offsite = None
# OPTIONAL. A WAL segment is archived at the latest after this many seconds: the bound of the RPO on a quiet machine.
backups_archive_timeout_s = 300
# OPTIONAL. How long the service may be gone after the machine is lost, seconds: 4 hours. A gate of every rehearsal.
backups_rto_budget_s = 14400
# OPTIONAL. How much may be lost, seconds back from the loss: 24 hours. A gate of every rehearsal.
backups_rpo_budget_s = 86400
# OPTIONAL. Days to which the local repository can go back; a full backup is kept until a younger one is that old.
# 14: it shares the disk with the database.
backups_repo1_days = 14
# OPTIONAL. The same off-site. 30: what was spoilt at the beginning of the month can still be brought back.
backups_repo2_days = 30
# OPTIONAL. Days for which snapshots of restic stay when `minipc backup prune` is run; the mini PC can remove none.
backups_files_days = 90
# OPTIONAL. Processes that compress and send. 2 leaves the service room on four cores.
backups_processes = 2
# OPTIONAL. When the full backup is taken (systemd OnCalendar, host_timezone). In the quietest night of the week.
backups_full_calendar = "Sun 02:30"
# OPTIONAL. When a differential backup is taken. The other nights: the database is backed up once a day.
backups_diff_calendar = "Mon..Sat 02:30"
# OPTIONAL. When configuration and state are sent to restic. An hour after the database: they don't share disk and line.
backups_files_calendar = "03:30"
# OPTIONAL. When a restore is tried for real. After the week's full backup, before anybody is up.
backups_drill_calendar = "Sun 05:00"
# OPTIONAL. Each of these starts up to so many seconds late, so that machines don't all start at once.
backups_random_delay_s = 900
# OPTIONAL. Loopback port of the drill's scratch cluster. The next one after PostgreSQL's.
backups_drill_port = 5433
# OPTIONAL. Disk space that must stay free beside the drill's scratch cluster (1.3 × the database), MB.
backups_drill_margin_mb = 1024
# OPTIONAL. What a restored database must answer: one number, compared with `expect`.
backups_drill_queries = [
    {
        "name": "the schema is at a known version",
        "database": "workload",
        "sql": "SELECT count(*) FROM schema_version",
        "expect": "== 1",
    },
    {
        "name": "each push subscription belongs to somebody",
        "database": "workload",
        "sql": "SELECT count(*) FROM push_subscriptions WHERE user_id IS NULL OR user_id = ''",
        "expect": "== 0",
    },
    {
        "name": "each backtest has its forecast",
        "database": "workload",
        "sql": "SELECT count(*) FROM backtests b LEFT JOIN forecasts f ON f.id = b.forecast_id WHERE f.id IS NULL",
        "expect": "== 0",
    },
]
# OPTIONAL. Which table carries which promise, in the order in which a rebuild verifies them; `timestamp` is the column
# that tells how recent its rows are.
backups_data_classes = [
    {
        "name": "must recover",
        "database": "workload",
        "tables": [
            {"name": "notification_settings", "timestamp": "updated_at"},
            {"name": "push_subscriptions", "timestamp": "created_at"},
        ],
    },
    {"name": "outbox", "database": "workload", "tables": [{"name": "outbox", "timestamp": "created_at"}]},
    {
        "name": "evidence",
        "database": "workload",
        "tables": [
            {"name": "app_events", "timestamp": "occurred_at"},
            {"name": "audit_log", "timestamp": "occurred_at"},
            {"name": "forecasts", "timestamp": "made_at"},
            {"name": "backtests", "timestamp": "scored_at"},
        ],
    },
    {
        "name": "rebuildable",
        "database": "workload",
        "tables": [
            {"name": "parking_lots", "timestamp": None},
            {"name": "parking_observations", "timestamp": "observed_at"},
            {"name": "districts", "timestamp": None},
            {"name": "weather_observations", "timestamp": "observed_at"},
        ],
    },
    {"name": "operational", "database": "workload", "tables": [{"name": "worker_heartbeats", "timestamp": "beat_at"}]},
]

# --- redis: the cache ----------------------------------------------------------------------------------------------
# OPTIONAL. TCP port. Redis's own.
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

# --- k3s: where the service runs -----------------------------------------------------------------------------------
# OPTIONAL. The node's address, IPv4; None: that of the default route's interface. REQUIRED when agents join: the one
# where they reach it, on the operator's side.
k3s_node_ip = None
# OPTIONAL. The machine whose cluster this one joins: agent_machine() in the inventory sets it.
k3s_server = None
# OPTIONAL. More names and addresses in the API's certificate. It always has the
# inventory's addresses of the machine, and those in the VPN.
k3s_api_names = []
# OPTIONAL. Registries that ask for a password: {"name": "ghcr", "host": "ghcr.io", "username": "you"}; the password or
# token of NAME is the secret `k3s.registry.NAME`.
k3s_registries = []
# OPTIONAL. Days the API's audit log is kept. 30: as the journal.
k3s_audit_days = 30

# --- argocd: what should run is in Git ------------------------------------------------------------------------------
# OPTIONAL. Address of the deploy repository, ssh://git@HOST/PATH; ArgoCD reads it with the secret `argocd.deploy_key`.
# None: the off-site machine hosts it (offsite_deploy_repository).
argocd_repository = None
# REQUIRED with argocd_repository: lines of known_hosts for its host. Compare with what the host publishes.
argocd_known_hosts = []
# OPTIONAL. Branch that says what should run. The applications in gitops/root/base name it, too.
argocd_revision = "main"
# OPTIONAL. The root application's folder in it. As in gitops/, which the repository begins as.
argocd_path = "root/production"
# OPTIONAL. TCP port of its user interface (TLS); free. The operator reaches it if firewall_operator_tcp has it, too.
argocd_port = 8443

# --- workload: the service -----------------------------------------------------------------------------------------
# OPTIONAL. Where it runs: "k3s", or "stand-in" (systemd units; the lab only, where K3s can't be had).
workload_runtime = "k3s"
# OPTIONAL. Port of the API on 127.0.0.1, where the door asks it. In K3s a NodePort: 30000 to 32767, and the one in the
# deploy repository (workload/base/api.yaml).
workload_port = 30080
# OPTIONAL. A worker whose heartbeat is older makes /api/health non-200, seconds.
workload_worker_stale_s = 600
# OPTIONAL. Loopback ports of the workers' metrics; in K3s their pods' (gitops/workload/base/workers.yaml). Free.
workload_metrics_ports = {"ingest": 9201, "forecast": 9202, "push": 9203}
# OPTIONAL. Report errors to Sentry; needs the secret `sentry.dsn`.
workload_sentry = False

# --- edge: the public door -----------------------------------------------------------------------------------------
# REQUIRED in production.py: the public name.
edge_domain = None
# OPTIONAL. Certificates: "production" or "staging" (Let's Encrypt: get the first one with "staging", whose limits are
# wide and whose certificates nobody trusts), "other" (ACME, edge_acme_url), "internal" (Caddy's own authority).
edge_acme = "production"
# REQUIRED for "other": the directory of the ACME server, https://…; None otherwise.
edge_acme_url = None
# OPTIONAL. For "other": certificate (PEM) that the ACME server itself is trusted by; None: those that Debian trusts.
edge_acme_root = None
# OPTIONAL. Contact for the ACME account; None: none is given.
edge_acme_email = None
# OPTIONAL. Where the API answers, ADDRESS:PORT; None: on loopback, at workload_port.
edge_upstream = None
# OPTIONAL. HTTP/3 over QUIC; then 443 must be in firewall_public_udp. Off: HTTP/2 serves the same, and the QUIC in
# Debian 13's Caddy 2.6 is from 2022.
edge_http3 = False
# OPTIONAL. Days for which browsers remember to come by HTTPS only (HSTS), subdomains included; 0: no such header.
edge_hsts_days = 365
# OPTIONAL. Largest request, MB (10^6 bytes). The service takes small JSON; this leaves room for a picture.
edge_max_body_mb = 10
# OPTIONAL. How long a client may take to send the head of a request, seconds. Real ones need far less than one.
edge_header_timeout_s = 10
# OPTIONAL. How long for all of it, seconds: the largest request on a phone's slow uplink.
edge_body_timeout_s = 60
# OPTIONAL. Days access logs are kept on disk. 30: as the journal.
edge_log_days = 30

# --- dns: where the public name leads (docs/reference/dns.md) ------------------------------------------------------
# OPTIONAL. "none": the records are kept by hand; "cloudflare": `minipc dns cutover` sets them. The token is the secret
# `dns.cloudflare_token`.
dns_provider = "none"
# REQUIRED unless the provider is "none": the zone, such as "example.org".
dns_zone = None
# REQUIRED unless the provider is "none": the names that lead to this machine: {"name": "…", "type": "A" or "AAAA"}.
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
# OPTIONAL. How often the timer looks, seconds. 300: as long as resolvers keep the old answer anyway (dns_ttl_s).
dns_follow_every_s = 300
# OPTIONAL. Who tells the machine its public address: the bare address, or a line ip=ADDRESS.
dns_address_url = "https://cloudflare.com/cdn-cgi/trace"
# OPTIONAL. Where the provider's API answers; only tests change it.
dns_api_url = "https://api.cloudflare.com/client/v4"

# --- prometheus: what is measured (docs/reference/prometheus.md) ---------------------------------------------------
# OPTIONAL. Days measurements are kept. 30: a job is compared with its last 7 days, a month with the one before.
prometheus_retention_days = 30
# OPTIONAL. The same as a limit on disk space, MB; whichever is reached first counts.
prometheus_retention_mb = 2048
# OPTIONAL. How often everything is measured, seconds; the service's answers are probed every 60 s.
prometheus_scrape_interval_s = 15
# OPTIONAL. Share of requests that may end in errors within 30 days, percent. 0.5: about three and a half hours of them.
prometheus_error_budget_percent = 0.5
# OPTIONAL. Memory of Prometheus itself, MB; beyond it the machine takes its memory back, beyond the 1.5-fold it ends.
prometheus_memory_mb = 300
# OPTIONAL. Memory of the whole set: Prometheus, Alertmanager and exporters, MB.
prometheus_set_memory_mb = 600
# OPTIONAL. Alerts in fast motion: every interval and window of measuring and alerting is divided by it. 1; only tests
# of alerts change it.
prometheus_pace = 1

# --- alertmanager: who hears of it (docs/reference/alertmanager.md) ------------------------------------------------
# OPTIONAL. Alerts go to Slack; needs the secret `alertmanager.slack_url`.
alertmanager_slack = True
# OPTIONAL. "#channel" or "@person"; None: the one that the webhook belongs to.
alertmanager_slack_channel = None
# OPTIONAL. A ping every 5 minutes to whoever shouts when it stops: the watcher on the off-site machine, or the address
# in the secret `alertmanager.watchdog_url`.
alertmanager_watchdog = False
# OPTIONAL. Where the triage chapter can be read by whoever gets an alert; with https:// it becomes a link.
alertmanager_runbook_url = "docs/runbook-triage.md"

# --- loki: logs, searchable (docs/reference/loki.md) ---------------------------------------------------------------
# OPTIONAL. Loopback port of its HTTP interface. Loki's own.
loki_port = 3100
# OPTIONAL. Loopback port on which its parts talk to each other. Loki's own.
loki_grpc_port = 9095
# OPTIONAL. Days logs are kept: the journal's 30 and one; an incident found at the end of the month can still be read.
loki_days = 31
# OPTIONAL. Disk space, MB; where logs need more they are kept for less long, at least a day.
loki_max_disk_mb = 10240
# OPTIONAL. Memory, MB; beyond it the machine takes its memory back, beyond the 1.5-fold it is restarted.
loki_memory_mb = 256

# --- syslog_ng: logs on their way (docs/reference/syslog_ng.md) ----------------------------------------------------
# OPTIONAL. Where Loki is; None: on this machine.
syslog_ng_loki_url = None
# OPTIONAL. Disk space for what Loki has not taken yet, MB. 512: a talkative day; then the journal keeps it.
syslog_ng_buffer_mb = 512

# --- grafana: dashboards (docs/reference/grafana.md) ---------------------------------------------------------------
# OPTIONAL. Where it listens: loopback, reached through SSH (-L 3000:127.0.0.1:3000), or an operator-side address.
grafana_address = "127.0.0.1"
# OPTIONAL. TCP port. Grafana's own.
grafana_port = 3000
# OPTIONAL. Memory, MB; beyond it the machine takes its memory back, beyond the 1.5-fold it is restarted.
grafana_memory_mb = 256
