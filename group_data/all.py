"""All settings: REQUIRED or OPTIONAL, unit, default and reason.

`production.py` and `lab.py` in this folder override single keys. The rules are in `minipc/config/schema.py`. Check your
settings with `minipc config`. Fixed ports are in `minipc/core/ports.py`.
"""

# --- secrets: where secrets are stored (docs/reference/secrets.md) ---------------------------------------------------
# OPTIONAL. "age": an encrypted file in the repository; needs no server. "vault": Vault or OpenBao, KV version 2.
# The lab always uses a separate age file.
secrets_backend = "age"
# OPTIONAL. Public keys (age1…) that can also open the age file, for example of a second person or a key kept in a
# safe.
secrets_age_recipients = []
# OPTIONAL. How to reach Vault, a dict; "url" is required, docs/reference/secrets.md lists the other keys. Needed
# for the backend "vault" and for `minipc secrets copy`. It never contains credentials.
secrets_vault = None

# --- bundle: the break-glass bundle (docs/reference/bundle.md) -------------------------------------------------------
# OPTIONAL. `minipc bundle check` fails if the break-glass bundle is older than this, days. 90: you type its
# passphrase four times a year and so remember it.
bundle_max_age_days = 90

# --- host: Debian itself -------------------------------------------------------------------------------------------
# OPTIONAL. Host name, as shown in prompts, logs and metrics.
host_name = "minipc"
# OPTIONAL. IANA time zone. UTC: the logs of two machines can be compared directly.
host_timezone = "Etc/UTC"
# OPTIONAL. Base URL of a Debian mirror. None keeps the sources that the installer set.
host_apt_mirror = None
# OPTIONAL. The mirror for security updates; only used together with host_apt_mirror.
host_apt_security_mirror = None
# OPTIONAL. The operator's account: logs in by key and becomes root with sudo. Not "operator": Debian has a group of
# that name.
host_operator_user = "ops"
# REQUIRED in production.py: public keys (lines of .pub files) that may log in as the operator and, from the
# operator side only, as root to converge.
host_operator_keys = []
# OPTIONAL. Days that the journal is kept. 30: an incident found at the end of the month can still be read.
host_journal_days = 30
# OPTIONAL. Maximum size of the journal, MB. The limit that is reached first applies, so leave room for
# host_journal_days.
host_journal_max_mb = 4096
# OPTIONAL. The address (a /32 on `lo`) where PostgreSQL and Redis listen for the cluster. It works on every kernel
# and exists before any network is up.
host_service_address = "10.88.0.1"
# OPTIONAL. Additional sysctls, name -> value. templates/host/sysctl.conf.j2 has the others.
host_sysctls = {}
# OPTIONAL. A change to SSH, VPN or firewall is reverted if no new connection confirms it within this time, seconds.
# 60: how long you wait if you locked yourself out.
host_confirm_within_s = 60
# OPTIONAL. Time of day (HH:MM in host_timezone) for the reboot that a security update needs. None: never reboot
# automatically.
host_reboot_at = "04:30"
# OPTIONAL. What unlocks the disk of a machine that `minipc image build` makes (docs/howto/disk-encryption.md). "none":
# the disk is not encrypted. "passphrase": you, over SSH or on the screen, at each boot. "tpm2": its TPM, or you.
host_disk_encryption = "none"

# --- vpn: operator access (docs/reference/vpn.md) --------------------------------------------------------------------
# OPTIONAL. UDP port of WireGuard; 51820 is its usual one. It is open to everyone, but only answers clients with a
# valid key.
vpn_port = 51820
# OPTIONAL. Address or name where clients reach that port. None: the domain of the first public
# service.
vpn_endpoint = None
# OPTIONAL. IPv4 network of the tunnel; the machine has its first address. It must not overlap the operator's
# networks.
vpn_network = "10.99.0.0/24"
# OPTIONAL. IPv6 network of the tunnel.
vpn_network_ipv6 = "fd99:6d69:6e69::/64"
# OPTIONAL. Idle clients send a packet at this interval, seconds, so that routers keep the connection open. 0:
# never. 25 is the value that WireGuard's manual suggests.
vpn_keepalive_s = 25
# OPTIONAL. Services on loopback that also answer through the VPN, on the same port: name -> TCP port. These two
# ports are fixed (minipc/core/ports.py).
vpn_services = {"prometheus": 9090, "alertmanager": 9093}
# OPTIONAL. VPN clients: name, public_key, allowed_ips. `minipc vpn add NAME` maintains the list for production.py.
vpn_peers = []

# --- firewall: public and operator side ------------------------------------------------------------------------------
# REQUIRED in production.py: public-facing network interfaces. A port that a router forwards counts as public.
firewall_public_interfaces = []
# REQUIRED in production.py: operator-facing network interfaces. They may be the same, because source networks are
# checked too.
firewall_operator_interfaces = []
# REQUIRED in production.py: source networks of the operator side, CIDR.
firewall_operator_networks = []
# OPTIONAL. Who reaches the operator's ports. "networks": firewall_operator_networks and VPN clients. "vpn": VPN
# clients only (docs/howto/vpn.md). The converge that closes the networks must be confirmed through the tunnel. None:
# "vpn" as soon as the machine's address in the inventory is one in the VPN, "networks" until then.
firewall_operator_access = None
# OPTIONAL. TCP ports open to everyone. Port 80 only redirects.
firewall_public_tcp = [80, 443]
# OPTIONAL. UDP ports open to everyone, in addition to vpn_port. HTTP/3 (edge_http3) needs 443.
firewall_public_udp = []
# OPTIONAL. TCP ports open to the operator. 6443: Kubernetes API. 8443: ArgoCD (change argocd_port too).
firewall_operator_tcp = [22, 6443, 8443]
# OPTIONAL. Interfaces of the cluster's pods. Packets are forwarded for these only.
firewall_pod_interfaces = ["cni0", "flannel.1", "flannel-wg"]
# OPTIONAL. TCP ports of the machine that pods may reach, in addition to PostgreSQL and Redis on the service
# address. 6443: Kubernetes API.
firewall_pod_tcp = [6443]
# OPTIONAL. New connections per second to the public ports from one client (IPv6: one /64); twice as many in a
# burst. 100 is enough for a household behind one address.
firewall_client_new_per_s = 100
# OPTIONAL. Open connections to the public ports from one client. 256: a browser opens six, and a household shares
# them.
firewall_client_connections = 256

# --- postgres: data that must not be lost ----------------------------------------------------------------------------
# OPTIONAL. TCP port; 5432 is PostgreSQL's default.
postgres_port = 5432
# OPTIONAL. Networks whose clients may log in with a password: the cluster's pods. This is the default pod network
# of K3s.
postgres_client_networks = ["10.42.0.0/16"]
# OPTIONAL. Share of the machine's memory for shared_buffers, percent. 15 leaves room for K3s.
postgres_shared_buffers_percent = 15
# OPTIONAL. Maximum number of connections. 100 is PostgreSQL's default; connection pools in the service need far
# fewer.
postgres_max_connections = 100
# OPTIONAL. Statements slower than this are logged, milliseconds.
postgres_slow_statement_ms = 500
# OPTIONAL. What to do on a machine that has no database while a backup of one exists. "refuse": stop, so that a
# lost database is never replaced by an empty one. "restore", or "restore-incomplete" (also with a gap in the WAL).
# `minipc rebuild` sets it; leave it unchanged.
postgres_from_backup = "refuse"

# --- offsite: where the backups are kept (docs/reference/offsite.md, bucket.md and storage-box.md) --------------------
# OPTIONAL. "machine": the off-site host that backups_offsite names. "s3": a bucket. "sftp": a storage box. The last two
# need no second machine.
offsite_kind = "machine"
# OPTIONAL. The bucket for offsite_kind "s3", a dict: endpoint (HOST or HOST:PORT), bucket, region; ca (PEM) only for a
# server whose certificate is not from a public CA. Its key is in the secrets offsite.s3_access_key and
# offsite.s3_secret_key.
offsite_s3 = None
# OPTIONAL. The storage box for offsite_kind "sftp", a dict: host, port (often 23), user, path (a folder for nothing
# else), host_keys (a list: `minipc backup host-keys HOST:PORT` prints it). The mini PC's key is made by minipc: `minipc
# backup key` prints the line that you put into the box.
offsite_sftp = None
# OPTIONAL. Address or name where the mini PC reaches the off-site host. None: its address in the inventory.
offsite_address = None
# OPTIONAL. TCP port of its SFTP server for pgBackRest, a separate SSH server from the operator's.
offsite_sftp_port = 2222
# OPTIONAL. TCP port of its restic server (TLS); 8000 is the default of that server.
offsite_rest_port = 8000
# OPTIONAL. When copies are made that the mini PC's credentials cannot reach (systemd OnCalendar). Four a day:
# somebody who steals the credentials can destroy at most six hours.
offsite_copies_calendar = "00/6:15"
# OPTIONAL. Days that those copies are kept. 30: drills test each repository within two weeks, so damage is noticed
# in time.
offsite_copies_days = 30
# OPTIONAL. Space that the copies leave free for the live repository on the same disk, MB; a storage box with less
# counts as full. 2048: more than a day of WAL of a quiet machine.
offsite_free_mb = 2048
# OPTIONAL. The off-site host also hosts the deploy repository, read-only for ArgoCD. False: it is elsewhere
# (argocd_repository).
offsite_deploy_repository = False

# --- watcher: external monitoring (docs/reference/watcher.md) --------------------------------------------------------
# OPTIONAL. URLs to probe. None: the live path of each public service.
watcher_urls = None
# OPTIONAL. Address to probe instead of those in DNS. None: those in DNS, so that DNS is monitored too.
watcher_address = None
# OPTIONAL. TCP port that receives the mini PC's metrics (TLS with client certificates).
watcher_port = 8010
# OPTIONAL. Maximum disk space for metrics on the off-site host, MB: half for its own, half for the mini PC's. They are
# kept for prometheus_retention_days.
watcher_retention_mb = 1024
# OPTIONAL. Report when less than this share of the off-site disk is free, percent.
watcher_disk_free_percent = 10
# OPTIONAL. Report when the last successful copy of the backups is older than this, seconds. None: that host keeps
# no copies. 13 hours: two runs of offsite_copies_calendar were missed.
watcher_copy_age_s = 46800

# --- backups: schedules, retention, drills ---------------------------------------------------------------------------
# OPTIONAL. Name of the off-site host in the inventory. None: backups stay on the mini PC, and every report says so.
backups_offsite = None
# OPTIONAL. A WAL segment is archived after this time at the latest, seconds. It limits the data loss of a quiet
# machine.
backups_archive_timeout_s = 300
# OPTIONAL. WAL is also sent to the off-site host as it is written, encrypted: a lost machine loses about a second
# instead of backups_archive_timeout_s. A bucket cannot do it.
backups_wal_stream = True
# OPTIONAL. Limit of the recovery time (RTO), seconds: 4 hours. A gate of every rehearsal.
backups_rto_budget_s = 14400
# OPTIONAL. Limit of the data loss (RPO), seconds before the loss: 24 hours. A gate of every rehearsal.
backups_rpo_budget_s = 86400
# OPTIONAL. Days that the local repository can go back. A full backup is kept until a newer one is that old. 14: it
# shares the disk with the database.
backups_repo1_days = 14
# OPTIONAL. Days that the off-site repository can go back. 30: data damaged at the start of the month can still be
# restored at its end.
backups_repo2_days = 30
# OPTIONAL. Days that restic snapshots are kept when `minipc backup prune` runs. Nothing else removes any; with an
# off-site host the mini PC itself cannot.
backups_files_days = 90
# OPTIONAL. Number of processes that compress and send. 2 leaves room for the service on four cores.
backups_processes = 2
# OPTIONAL. When the full backup is made (systemd OnCalendar, host_timezone), in the quietest night of the week.
backups_full_calendar = "Sun 02:30"
# OPTIONAL. When a differential backup is made: the other nights, so that there is one backup per day.
backups_diff_calendar = "Mon..Sat 02:30"
# OPTIONAL. When configuration and state are sent to restic: one hour after the database, so that the two do not
# compete for disk and network.
backups_files_calendar = "03:30"
# OPTIONAL. When the restore drill runs: after the full backup of the week, before anybody is up.
backups_drill_calendar = "Sun 05:00"
# OPTIONAL. Each of these starts with a random delay of up to this time, seconds, so that several machines do not
# start at once.
backups_random_delay_s = 900
# OPTIONAL. Loopback port of the drill's temporary PostgreSQL server: the next one after PostgreSQL's.
backups_drill_port = 5433
# OPTIONAL. Disk space that must stay free in addition to the drill's temporary server (1.3 times the database), MB.
backups_drill_margin_mb = 1024

# --- redis: the cache ----------------------------------------------------------------------------------------------
# OPTIONAL. TCP port; 6379 is Redis's default.
redis_port = 6379
# OPTIONAL. Memory for data, MB. Above it Redis removes the least recently used keys (allkeys-lru).
redis_maxmemory_mb = 256

# --- k3s: runs the service -------------------------------------------------------------------------------------------
# OPTIONAL. IPv4 address of the node. None: the address of the interface with the default route. REQUIRED when
# agents join: the address on the operator's side where agents reach it.
k3s_node_ip = None
# OPTIONAL. The machine whose cluster this one joins. agent_machine() in the inventory sets it.
k3s_server = None
# OPTIONAL. Additional names and addresses in the API's certificate. The machine's addresses in the inventory and in
# the VPN are always included.
k3s_api_names = []
# OPTIONAL. Registries that need a login: {"name": "ghcr", "host": "ghcr.io", "username": "you"}. The password or
# token of NAME is the secret `k3s.registry.NAME`.
k3s_registries = []
# OPTIONAL. Days that the audit log of the API is kept. 30, like the journal.
k3s_audit_days = 30

# --- argocd: deploys what the deploy repository says -----------------------------------------------------------------
# OPTIONAL. Address of the deploy repository, ssh://git@HOST/PATH. ArgoCD reads it with the secret
# `argocd.deploy_key`. None: the off-site host hosts it (offsite_deploy_repository).
argocd_repository = None
# REQUIRED with argocd_repository: known_hosts lines of its host. Compare them with what the host publishes.
argocd_known_hosts = []
# OPTIONAL. Branch with the desired state. `minipc service render` writes it into the applications.
argocd_revision = "main"
# OPTIONAL. Folder of the root application in the repository, as in gitops/.
argocd_path = "root/production"
# OPTIONAL. TCP port of the user interface (TLS). The operator reaches it if firewall_operator_tcp contains it.
argocd_port = 8443

# --- services: what runs on the machine (docs/howto/your-own-service.md) ---------------------------------------------
# OPTIONAL. Folders with the service files, relative to the repository. Each file NAME.yaml in them is a service.
services_folders = ["services"]
# OPTIONAL. What runs the containers: "k3s", or "podman" (only in the lab, where K3s is not available: the
# same images and manifests).
services_runtime = "k3s"

# --- edge: the ingress (docs/reference/edge.md) -----------------------------------------------------------------------
# Domains, limits, headers and audience of a service are in its service file.
# OPTIONAL. Certificates: "production" or "staging" (Let's Encrypt; staging has high rate limits and untrusted
# certificates, so use it for the first attempt), "other" (an ACME server, edge_acme_url), "internal" (Caddy's own
# CA).
edge_acme = "production"
# REQUIRED for "other": the directory URL of the ACME server, https://…; None otherwise.
edge_acme_url = None
# OPTIONAL. For "other": CA certificate (PEM) of the ACME server itself. None: the CAs that Debian trusts.
edge_acme_root = None
# OPTIONAL. Contact address of the ACME account. None: no contact.
edge_acme_email = None
# OPTIONAL. HTTP/3 over QUIC; needs 443 in firewall_public_udp. Off, because the QUIC implementation in Debian 13's
# Caddy 2.6 is from 2022.
edge_http3 = False
# OPTIONAL. Days that browsers remember to use HTTPS only (HSTS), subdomains included. 0: no such header.
edge_hsts_days = 365
# OPTIONAL. Time limit for the headers of a request, seconds. Real clients need far less than one second.
edge_header_timeout_s = 10
# OPTIONAL. Time limit for a whole request, seconds: the largest request over a phone's slow uplink.
edge_body_timeout_s = 60
# OPTIONAL. Days that access logs are kept on disk. 30, like the journal.
edge_log_days = 30

# --- dns: the public name (docs/reference/dns.md) --------------------------------------------------------------------
# OPTIONAL. "none": you maintain the records by hand. Otherwise `minipc dns cutover` sets them at a provider that
# dns-lexicon knows: "cloudflare" with the secret `dns.cloudflare_token`, or for example "gandi", "hetzner" or "ovh"
# with the secret `dns.credentials`.
dns_provider = "none"
# OPTIONAL. Options of lexicon for the provider that are not secret, such as {"api_protocol": "rest"}.
dns_options = {}
# REQUIRED unless the provider is "none": the zone, such as "example.org".
dns_zone = None
# OPTIONAL. The names that point to this machine: {"name": "…", "type": "A" or "AAAA"}. None: all domains and redirects
# of the public services (type A; AAAA, too, if dns_ipv6 is set).
dns_records = None
# OPTIONAL. TTL of the records, seconds. 300: after a rebuild in another place nobody waits longer than that.
dns_ttl_s = 300
# OPTIONAL. TTL before and during a cutover, seconds. 60 is the minimum at Cloudflare; others have more.
dns_cutover_ttl_s = 60
# OPTIONAL. Public IPv4 address if it is fixed. None: it is given to the cutover, or the machine finds it out.
dns_ipv4 = None
# OPTIONAL. Public IPv6 address if it is fixed.
dns_ipv6 = None
# OPTIONAL. The public address is dynamic: a timer on the machine updates the records.
dns_follow = False
# OPTIONAL. Interval of that timer, seconds. 300: resolvers keep the old answer that long in any case (dns_ttl_s).
dns_follow_every_s = 300
# OPTIONAL. URL that tells the machine its public address: the bare address, or a line ip=ADDRESS.
dns_address_url = "https://cloudflare.com/cdn-cgi/trace"
# OPTIONAL. URL of the provider's API. None: the provider's own; only tests change it.
dns_api_url = None

# --- prometheus: metrics and alert rules (docs/reference/prometheus.md) ----------------------------------------------
# OPTIONAL. Days that metrics are kept. 30: a month can be compared with the month before.
prometheus_retention_days = 30
# OPTIONAL. Maximum disk space for metrics, MB. The limit that is reached first applies.
prometheus_retention_mb = 2048
# OPTIONAL. Scrape interval, seconds. The service's answers are probed every 60 s.
prometheus_scrape_interval_s = 15
# OPTIONAL. Soft memory limit of Prometheus, MB (MemoryHigh). MemoryMax is 1.5 times this; above it the process is
# killed.
prometheus_memory_mb = 300
# OPTIONAL. Soft memory limit of Prometheus, Alertmanager and exporters together, MB.
prometheus_set_memory_mb = 600
# OPTIONAL. Time scale of alerting: every interval and window is divided by this. 1; only tests of alerts change it.
prometheus_pace = 1

# --- alertmanager: notifications (docs/reference/alertmanager.md) ----------------------------------------------------
# OPTIONAL. Where alerts are sent, any number of dicts: "name", "kind" ("slack", "email", "webhook", "ntfy", "telegram",
# "discord", "pushover"), "priorities" (default: all of "P1", "P2", "P3"), and the keys of the kind. Each needs its
# secrets, such as `alertmanager.NAME_url`. Use two: each reports the other's failure.
alertmanager_channels = [{"name": "slack", "kind": "slack"}]
# OPTIONAL. True: accept that nobody is notified, because there is no channel.
alertmanager_unattended = False
# OPTIONAL. Request the URL in the secret `alertmanager.watchdog_url` every 5 minutes, of a monitor that reports when
# that stops. The off-site host needs no such ping: the metrics that the mini PC sends replace it.
alertmanager_watchdog = False
# OPTIONAL. The day of the week on which a digest is sent through each channel that gets P3, between 7 and 8 o'clock
# (host_timezone). None: never; `minipc digest` prints it at any time.
alertmanager_digest_day = "monday"
# OPTIONAL. Where the reader of an alert finds the triage chapter. With https:// it becomes a link.
alertmanager_runbook_url = "docs/runbook-triage.md"

# --- loki: log storage (docs/reference/loki.md) ----------------------------------------------------------------------
# OPTIONAL. Loopback port of the HTTP interface; 3100 is Loki's default.
loki_port = 3100
# OPTIONAL. Loopback port for Loki's internal traffic; 9095 is Loki's default.
loki_grpc_port = 9095
# OPTIONAL. Days that logs are kept: one more than the journal.
loki_days = 31
# OPTIONAL. Maximum disk space, MB. If logs need more, they are kept for less time, but at least for a day.
loki_max_disk_mb = 10240
# OPTIONAL. Soft memory limit, MB (MemoryHigh). MemoryMax is 1.5 times this; above it Loki is killed and restarted.
loki_memory_mb = 256

# --- syslog_ng: log shipping (docs/reference/syslog_ng.md) -----------------------------------------------------------
# OPTIONAL. URL of Loki. None: on this machine.
syslog_ng_loki_url = None
# OPTIONAL. Disk buffer for log lines that Loki has not accepted yet, MB. 512: a busy day; older lines stay in the
# journal.
syslog_ng_buffer_mb = 512

# --- grafana: dashboards (docs/reference/grafana.md) ---------------------------------------------------------------
# OPTIONAL. Address to listen on: loopback, reached through SSH (-L 3000:127.0.0.1:3000), or an address on the
# operator's side.
grafana_address = "127.0.0.1"
# OPTIONAL. TCP port; 3000 is Grafana's default.
grafana_port = 3000
# OPTIONAL. Soft memory limit, MB (MemoryHigh). MemoryMax is 1.5 times this; above it Grafana is killed and
# restarted.
grafana_memory_mb = 256
