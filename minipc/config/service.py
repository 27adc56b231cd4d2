"""The schema of `services/NAME.yaml`: what one service is, what it needs, and how to tell that it works.

`docs/howto/your-own-service.md` shows the whole contract; docs/reference/service.schema.json is generated from here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from minipc.config.types import Cidr, Domain, Port, Seconds, SqlName
from minipc.core.strict import Strict

NAME = re.compile(r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")
# Namespaces, applications and accounts of the platform.
RESERVED_NAMES = frozenset(
    {
        "argocd",
        "build",
        "default",
        "drill",
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "minipc",
        "monitoring",
        "platform",
    }
    | {"postgres", "redis", "root"}
    # Units of the platform are called minipc-NAME-…
    | {"backup", "gitops", "loki", "offsite", "revert", "service"}
    # Secrets of the platform are called NAME.…, too.
    | {"alertmanager", "backups", "dns", "grafana", "k3s", "release", "vpn", "watcher"}
)
RESERVED_PARTS = frozenset({"canary", "drill", "migrate", "network", "postgres", "redis", "smoke"})
"""Jobs of releases and drills, and names in the service's network."""
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_IMAGE = re.compile(r"^[a-z0-9]+([._:/-]+[a-z0-9]+)*$")
_PATH = re.compile(r"^/[A-Za-z0-9._~/%?&=+:@,-]*$")
_FIELD = r"(minute|hour|day|month|weekday)"
_CRON = re.compile(r"^(\*|[0-9]+(-[0-9]+)?)(/[0-9]+)?(,(\*|[0-9]+(-[0-9]+)?)(/[0-9]+)?)*$")
_CRON_LIMITS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
PLACEHOLDER = re.compile(r"\{([a-z]+)\.([A-Za-z_][A-Za-z0-9_]*)\}")
PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "service": ("name", "version", "environment", "domain"),
    "postgres": ("host", "port", "database", "user", "password", "password_file"),
    "redis": ("host", "port", "user", "password", "password_file"),
}
"""What `environment` may contain in braces; `{secret.KEY}` stands for each declared secret."""


def _variable(value: str) -> str:
    if not _VARIABLE.match(value):
        raise ValueError("not the name of an environment variable; allowed: letters, digits and _, such as STRIPE_KEY")
    return value


def _image(value: str) -> str:
    last = value.rsplit("/", 1)[-1]
    if "@" in value or ":" in last:
        bare = value.partition("@")[0].rsplit(":", 1)[0]
        raise ValueError(f"it must have no tag and no digest, which the release names; did you mean {bare!r}?")
    if not _IMAGE.match(value):
        raise ValueError("not the name of a container image; allowed: such as 'ghcr.io/you/shop'")
    return value


def _path(value: str) -> str:
    if not _PATH.match(value):
        raise ValueError("not a path of a URL; allowed: such as '/healthz'")
    return value


def _absolute(value: str) -> str:
    if not re.match(r"^/[A-Za-z0-9._/-]+$", value) or ".." in value.split("/") or value.rstrip("/") in ("", "/run"):
        raise ValueError("not an absolute path inside the container; allowed: such as '/data/uploads'")
    return value.rstrip("/")


def _cron(value: str) -> str:
    fields = value.split()
    if len(fields) != 5:
        raise ValueError("not a cron expression: five fields (minute hour day month weekday), such as '0 3 * * *'")
    for text, (name, low, high) in zip(fields, _CRON_LIMITS, strict=True):
        numbers = [int(each) for part in text.split(",") for each in re.findall(r"\d+", part.partition("/")[0])]
        if not _CRON.match(text) or not all(low <= number <= high for number in numbers):
            raise ValueError(f"not a cron expression: {name} is {text!r}; allowed: {low} to {high}, *, */5, 1-5, 1,3")
    return value


def _duration(value: str) -> str:
    if not re.match(r"^[1-9][0-9]*[smhd]$", value):
        raise ValueError("not a duration; allowed: a number and s, m, h or d, such as '26h'")
    return value


def _table(value: str) -> str:
    if not value or "\0" in value or len(value.encode()) > 127 or value.count(".") > 1:
        raise ValueError("not a table; allowed: NAME or SCHEMA.NAME, such as 'users', 'Users' or 'billing.invoices'")
    return value


def _column(value: str) -> str:
    if not value or "\0" in value or len(value.encode()) > 63:
        raise ValueError("not the name of a column; allowed: such as 'created_at' or 'createdAt'")
    return value


def _extension(value: str) -> str:
    if not re.match(r"^[a-z][a-z0-9_-]{0,62}$", value):
        raise ValueError("not the name of a PostgreSQL extension; allowed: such as 'citext', 'vector' or 'postgis'")
    return value


Variable = Annotated[str, AfterValidator(_variable)]
NO_REGISTRY = "minipc.local"
"""First part of the name of an image that is in no registry: it was built or added on the controller."""
ImageName = Annotated[str, AfterValidator(_image)]
UrlPath = Annotated[str, AfterValidator(_path)]
ContainerPath = Annotated[str, AfterValidator(_absolute)]
Cron = Annotated[str, AfterValidator(_cron)]
Duration = Annotated[str, AfterValidator(_duration)]
TableName = Annotated[str, AfterValidator(_table)]
ColumnName = Annotated[str, AfterValidator(_column)]
PartName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Command = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Expectation = Annotated[str, Field(pattern=r"^(==|!=|>=|<=|>|<) -?\d+$")]
DataClassName = Literal["must recover", "outbox", "evidence", "rebuildable", "operational"]
"""Promises, in the order in which a rebuild verifies them."""


class BasicAuthentication(Strict):
    """A name and a password that the ingress asks for; the password is the secret `NAME.INGRESS_PASSWORD`."""

    user: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class ForwardAuthentication(Strict):
    """A URL that the ingress asks before each request; it lets the request pass if the answer is 2xx.

    Attributes:
        copy_headers: headers of that answer which are passed to the service.
    """

    url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/\S*)?$")]
    copy_headers: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")]] = []


class Authentication(Strict):
    """Who may use the service, in addition to what it checks itself. Exactly one of the two."""

    basic: BasicAuthentication | None = None
    forward: ForwardAuthentication | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.basic is None) == (self.forward is None):
            raise ValueError("allowed: exactly one of basic and forward")
        return self


class Ingress(Strict):
    """How users reach the service.

    Attributes:
        domains: names that are served; the first is the service's own.
        redirects: names that redirect to the first domain, such as www.
        audience: everybody, or only clients of the operator's VPN.
        process: the process that answers; None: the one that has a port.
        node_port: port on 127.0.0.1 of the machine where the ingress reaches it; another one for each service.
        headers: "service": the ingress adds security headers that the service does not set. "strict": the ingress
            replaces them by the strictest ones.
        body_limit_mb: largest request body, MB (10^6 bytes).
        response_limit_s: an answer must begin within this time, seconds, and request and answer together may take this
            time and edge_body_timeout_s; None: no limit, for server-sent events and downloads.
        requests_per_s: requests per second that one client may send, as the average of ten seconds; None: no limit.
        trusted_proxies: networks of proxies in front: the last address in their X-Forwarded-For is the client's.
    """

    domains: Annotated[list[Domain], Field(min_length=1)]
    redirects: list[Domain] = []
    audience: Literal["public", "operator"] = "public"
    process: PartName | None = None
    node_port: Annotated[int, Field(ge=30000, le=32767)]
    headers: Literal["service", "strict"] = "service"
    body_limit_mb: Annotated[int, Field(ge=1, le=10240)] = 10
    response_limit_s: Annotated[int, Field(ge=1, le=86400)] | None = 60
    requests_per_s: Annotated[int, Field(ge=1, le=10000)] | None = None
    trusted_proxies: list[Cidr] | Literal["cloudflare"] = []
    authentication: Authentication | None = None

    @model_validator(mode="after")
    def _the_names_are_distinct(self) -> Self:
        names = [*self.domains, *self.redirects]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"{doubled[0]!r} is in domains or redirects twice")
        return self

    @model_validator(mode="after")
    def _the_operator_uses_no_proxy(self) -> Self:
        if self.audience == "operator" and self.trusted_proxies:
            raise ValueError("trusted_proxies: only for audience 'public'; the operator comes through the VPN")
        return self


class Metrics(Strict):
    """Where a process publishes Prometheus metrics; the ingress never serves them."""

    port: Port
    path: UrlPath = "/metrics"


class Program(Strict):
    """What a container runs.

    Attributes:
        command: replaces the image's command (arguments of its entrypoint), as in a compose file; None: the image's.
        entrypoint: replaces the image's entrypoint; None: the image's.
        memory_mb: limit, MB (2^20 bytes).
        environment: additional variables, as `Service.environment`.
    """

    command: Command | None = None
    entrypoint: Command | None = None
    memory_mb: Annotated[int, Field(ge=16, le=262144)] = 256
    environment: dict[Variable, str] = {}


class Process(Program):
    """A program that always runs.

    Attributes:
        port: port of its HTTP server in the container; None: it has none.
        replicas: how many run at the same time.
        metrics: where it publishes metrics; None: it has none.
    """

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    replicas: Annotated[int, Field(ge=1, le=20)] = 1
    metrics: Metrics | None = None


class CronJob(Program):
    """A program that runs at certain times (UTC).

    Attributes:
        schedule: five fields, as in crontab(5).
        alert_after: report when the last success is older than this.
        time_limit_s: it is ended after this time, seconds.
    """

    schedule: Cron
    alert_after: Duration
    time_limit_s: Seconds = 3600


class Migration(Program):
    """Brings the database to the schema of a release, before the release starts. Runs as the owner of the tables."""

    time_limit_s: Seconds = 600


class Health(Strict):
    """Which paths tell how the service is.

    Attributes:
        live: answers 200 while the process works; a process that does not is restarted.
        ready: answers 200 once it can serve users: at the start, and at the end of a rebuild.
        before_writes: answers 200 while writes can be stored. The ingress asks it, and answers writes with 503 while
            it does not. None: writes are passed on without asking.
        start_limit_s: time that it may take to start, seconds.
    """

    live: UrlPath
    ready: UrlPath
    before_writes: UrlPath | None = None
    start_limit_s: Annotated[int, Field(ge=1, le=3600)] = 60


class Extension(Strict):
    """A PostgreSQL extension, and the Debian package that contains it; None: PostgreSQL's own."""

    name: Annotated[str, AfterValidator(_extension)]
    package: Annotated[str, Field(pattern=r"^postgresql-17-[a-z0-9.+-]+$")] | None = None


class Postgres(Strict):
    """The service's database.

    Attributes:
        owner: role that runs migrations and owns all objects; None: DATABASE_owner.
        runtime: role of the service, which reads and writes rows but cannot change tables; None: as the database.
        reader: role with which minipc reads the tables; it has no password. None: DATABASE_reader.
    """

    database: SqlName
    owner: SqlName | None = None
    runtime: SqlName | None = None
    reader: SqlName | None = None
    extensions: list[Extension] = []

    @property
    def roles(self) -> tuple[str, str, str]:
        """Return the names of owner, runtime and reader."""
        name = self.database
        return self.owner or f"{name}_owner", self.runtime or name, self.reader or f"{name}_reader"


class Redis(Strict):
    """Redis for the service.

    Attributes:
        kind: "cache": one instance for all services, which forgets what it has no room for. "queue": a separate
            instance that forgets nothing, writes to disk and is part of the backup.
        keys: patterns of keys that the service may use; None: those that begin with NAME and a colon.
        memory_mb: of a queue, MB; writes are refused above it.
    """

    kind: Literal["cache", "queue"]
    keys: list[Annotated[str, Field(pattern=r"^[^\s~&+@%()]+$")]] | None = None
    memory_mb: Annotated[int, Field(ge=8, le=65536)] = 64


class Volume(Strict):
    """A directory that survives the container; it is backed up, restored before the ingress opens, and drilled.

    Attributes:
        mount: path in the container.
        size_gb: most that it may hold, GB (2^30 bytes); an alert fires before that.
        data_class: the promise for its files.
        processes: which processes and cron jobs have it; None: all, the migration included.
        sqlite: patterns, relative to the volume, of SQLite files; they are backed up consistently.
    """

    mount: ContainerPath
    size_gb: Annotated[int, Field(ge=1, le=65536)]
    data_class: DataClassName
    processes: list[PartName] | None = None
    sqlite: list[Annotated[str, Field(pattern=r"^[^/\s][^\s]*$")]] = []


class DrillQuestion(Strict):
    """A question to a restored database: SQL that returns one number, and what it is compared with."""

    name: Annotated[str, Field(min_length=1)]
    sql: Annotated[str, Field(min_length=1)]
    expect: Expectation


class Request(Strict):
    """A request to the service, and the answer that is expected.

    Attributes:
        path: may contain {id}, which each use replaces by a new value.
        body: sent as it is; a mapping or list is sent as JSON. May contain {id}.
        status: expected status.
        contains: text that the answer must contain; None: any.
    """

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: Annotated[str, Field(pattern=r"^/\S*$")]
    headers: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")], str] = {}
    body: str | dict[str, object] | list[object] | None = None
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: Annotated[str, Field(min_length=1)] | None = None


class SmokeCheck(Strict):
    """Something a user would notice. Exactly one of request and command.

    Attributes:
        command: runs in a new pod of the release with the service's environment; exit code 0 is a pass.
    """

    name: Annotated[str, Field(min_length=1, max_length=120)]
    request: Request | None = None
    command: Command | None = None
    time_limit_s: Annotated[int, Field(ge=1, le=600)] = 30

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.request is None) == (self.command is None):
            raise ValueError("allowed: exactly one of request and command")
        return self


class RehearsalWrite(Strict):
    """Something that a rehearsal stores like a user, and how it finds that again after the machine was lost.

    Attributes:
        data_class: of what is stored.
        request: stores it; {id} in its path or body is new for each request.
        find: SQL that returns the stored ids, one a row, such as "SELECT name FROM lots". It may return others, too.
    """

    data_class: DataClassName
    request: Request
    find: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _it_is_recognised(self) -> Self:
        if "{id}" not in self.request.path + str(self.request.body or ""):
            raise ValueError("request: neither path nor body contains {id}, so that it could not be found again")
        return self


class Rehearsal(Strict):
    """What users do during a rehearsal.

    Attributes:
        writes: sent in turn.
        reads: sent between them.
        files: a request that stores a file in a volume; None: none. Volumes are compared by their content.
    """

    writes: list[RehearsalWrite] = []
    reads: list[Request] = []
    files: Request | None = None


class Destination(Strict):
    """Where pods may connect to, besides the service's own database, cache and pods.

    Attributes:
        network: "internet" is every address except private and link-local ones.
    """

    network: Cidr | Literal["internet"]
    ports: Annotated[list[Port], Field(min_length=1)]


class Page(Strict):
    """A page that is requested through the ingress every minute and must answer 200.

    Attributes:
        path: of the page; it is requested without credentials.
        refuse: regular expression (RE2); an answer whose body matches is a failure, too.
        alert: False: no alert; a question in the file `checks` asks for it.
    """

    path: UrlPath
    refuse: Annotated[str, Field(min_length=1)] | None = None
    alert: bool = True


class Alerts(Strict):
    """When the service is reported. The files are next to the service file; docs/reference/prometheus.md shows them.

    Attributes:
        answer_within_ms: report when an answer of the ready path takes longer on average, milliseconds.
        pages: pages that must answer, besides the paths of `health`, by a name.
        rules: file with alert rules about the service's own metrics.
        checks: file with questions for `minipc status` and alerts, in the format of playbooks/checks.yaml.
        log_queries: file with saved log queries, in the format of playbooks/log_queries.yaml.
    """

    answer_within_ms: Annotated[int, Field(ge=10, le=60000)] = 2000
    pages: dict[PartName, Page] = {}
    rules: FileName | None = None
    checks: FileName | None = None
    log_queries: FileName | None = None


class Service(Strict):
    """One service.

    Attributes:
        name: of its file without .yaml, its namespace, its application and its Redis user.
        summary: what it is, half a sentence.
        image: repository of its container image; tag and digest belong to the release, in the deploy repository.
        image_signer: file next to the service file with the public key of cosign (PEM, ECDSA P-256); a release is
            refused unless its image carries a signature of that key. None: signatures are not verified.
        build: folder with a Containerfile, relative to the service file, from which the image is built on the
            controller; None: the image is added as a file (`minipc service image`) or comes from a registry.
        user: numeric user (and group) id that the containers run as; never root.
        writable: directories in the container that are writable and empty at each start; the rest is read-only.
        environment: variables of all processes. Placeholders are listed in PLACEHOLDERS.
        secrets: names of variables whose values are the secrets NAME.KEY (`minipc secrets set NAME.KEY`).
        manifests: "generated" from this file, or "own": written by you in the deploy repository and only checked.
        rollback: whether a release that fails its smoke checks is rolled back without a question.
        verify: folder with checks of the service itself (pytest with testinfra), relative to the service file;
            `minipc verify services` runs them, too.
        folder: of the service file, absolute; set when it is read.
    """

    name: str
    folder: str = ""
    verify: str | None = None
    summary: str = ""
    image: ImageName
    image_signer: FileName | None = None
    build: Annotated[str, Field(min_length=1)] | None = None
    user: Annotated[int, Field(ge=1, le=4294967294)] = 10001
    writable: list[ContainerPath] = ["/tmp"]  # noqa: S108 - a path in the container
    ingress: Ingress | None = None
    processes: Annotated[dict[PartName, Process], Field(min_length=1)]
    cron: dict[PartName, CronJob] = {}
    migrate: Migration | None = None
    health: Health | None = None
    postgres: Postgres | None = None
    redis: Redis | None = None
    environment: dict[Variable, str] = {}
    secrets: list[Variable] = []
    volumes: dict[PartName, Volume] = {}
    data_classes: dict[DataClassName, dict[TableName, ColumnName | None]] = {}
    drill: list[DrillQuestion] = []
    smoke: list[SmokeCheck] = []
    rehearsal: Rehearsal | None = None
    destinations: list[Destination] = []
    alerts: Alerts = Alerts()
    manifests: Literal["generated", "own"] = "generated"
    rollback: Literal["ask", "automatic"] = "ask"

    def beside(self, path: str) -> Path:
        """Return the absolute path of a file or folder that is named relative to the service file."""
        return Path(self.folder, path)

    @property
    def domain(self) -> str | None:
        """Return its own public name; None if nothing of it is reached through the ingress."""
        return self.ingress.domains[0] if self.ingress else None

    @property
    def front(self) -> tuple[str, Process] | None:
        """Return name and settings of the process behind the ingress; None if there is no ingress."""
        if self.ingress is None:
            return None
        name = self.ingress.process or next(name for name, each in self.processes.items() if each.port)
        return name, self.processes[name]

    @property
    def redis_keys(self) -> list[str]:
        """Return the key patterns that it may use."""
        return (self.redis.keys if self.redis else None) or [f"{self.name}:*"]

    @model_validator(mode="after")
    def _name_is_usable(self) -> Self:
        if not NAME.match(self.name):
            raise ValueError(
                f"{self.name!r} is not a name for a service; allowed: lower-case letters, digits and -, beginning "
                "with a letter, at most 30, as the file's name"
            )
        if self.name in RESERVED_NAMES:
            raise ValueError(f"the name {self.name!r} belongs to the platform; choose another one")
        return self

    @model_validator(mode="after")
    def _a_signed_image_is_in_a_registry(self) -> Self:
        if self.image_signer and (self.build or self.image.startswith(f"{NO_REGISTRY}/")):
            raise ValueError("image_signer: signatures are in a registry, and this image is built here; remove one")
        return self

    @model_validator(mode="after")
    def _the_ingress_has_a_process(self) -> Self:
        if self.ingress is None:
            return self
        ports = [name for name, each in self.processes.items() if each.port]
        wanted = self.ingress.process
        if wanted and wanted not in self.processes:
            raise ValueError(f"ingress.process is {wanted!r}; allowed: {', '.join(self.processes)}")
        if wanted and self.processes[wanted].port is None:
            raise ValueError(f"processes.{wanted} has no port, and the ingress needs one")
        if not wanted and len(ports) != 1:
            raise ValueError(f"ingress.process: name one of the processes with a port: {', '.join(ports) or 'none'}")
        if self.health is None:
            raise ValueError("health: missing; a service with an ingress needs the paths that tell how it is")
        return self

    @model_validator(mode="after")
    def _pages_need_an_ingress(self) -> Self:
        if self.alerts.pages and self.ingress is None:
            raise ValueError("alerts.pages are requested through the ingress, and the service has no `ingress`")
        if self.alerts.pages and self.ingress and self.ingress.authentication:
            raise ValueError("alerts.pages are requested without a login, and the ingress asks for one")
        return self

    @model_validator(mode="after")
    def _parts_have_names_of_their_own(self) -> Self:
        doubled = sorted(set(self.processes) & set(self.cron))
        if doubled:
            raise ValueError(f"cron.{doubled[0]}: a process has the same name")
        taken = sorted(RESERVED_PARTS & {*self.processes, *self.cron})
        if taken:
            raise ValueError(f"{taken[0]!r} is a name that minipc uses itself; choose another one")
        return self

    @model_validator(mode="after")
    def _placeholders_are_known(self) -> Self:
        programs: list[tuple[str, dict[str, str]]] = [("environment", self.environment)]
        parts: dict[str, Program] = {
            **self.processes,
            **self.cron,
            **({"migrate": self.migrate} if self.migrate else {}),
        }
        programs += [(f"{name}.environment", each.environment) for name, each in parts.items()]
        for where, variables in programs:
            for variable, text in variables.items():
                if variable in self.secrets:
                    raise ValueError(f"{where}.{variable}: it is also in secrets")
                found = PLACEHOLDER.findall(text)
                for part, key in found:
                    self._check_placeholder(f"{where}.{variable}", part, key)
                secret = {part for part, _ in found} & {"postgres", "redis", "secret"}
                if secret and ("service", "version") in found:
                    raise ValueError(
                        f"{where}.{variable}: {{service.version}} cannot be combined with {{{min(secret)}.…}}: the "
                        "text is a secret of the machine, which does not know the version; use two variables"
                    )
        return self

    def _check_placeholder(self, where: str, part: str, key: str) -> None:
        known: tuple[str, ...] = tuple(self.secrets) if part == "secret" else PLACEHOLDERS.get(part, ())
        if key not in known:
            if part == "secret":
                raise ValueError(f"{where}: {{secret.{key}}} is not known; add {key} to `secrets`")
            names = [f"{{{group}.{each}}}" for group, keys in PLACEHOLDERS.items() for each in keys]
            names += [f"{{secret.{each}}}" for each in self.secrets]
            raise ValueError(f"{where}: {{{part}.{key}}} is not known; allowed: {', '.join(names)}")
        if part == "postgres" and self.postgres is None:
            raise ValueError(f"{where} uses {{postgres.{key}}}, and the service has no `postgres`")
        if part == "redis" and self.redis is None:
            raise ValueError(f"{where} uses {{redis.{key}}}, and the service has no `redis`")

    @model_validator(mode="after")
    def _data_is_where_it_is_said_to_be(self) -> Self:
        if self.postgres is None:
            writes = self.rehearsal.writes if self.rehearsal else []
            for key, given in (
                ("data_classes", self.data_classes),
                ("drill", self.drill),
                ("the writes of the rehearsal", writes),
            ):
                if given:
                    raise ValueError(f"{key} asks the database, and the service has no `postgres`")
        owners: dict[str, str] = {}
        for name, tables in self.data_classes.items():
            for table in tables:
                if table in owners:
                    raise ValueError(f"data_classes: {table!r} is in {owners[table]!r} and in {name!r}")
                owners[table] = name
        return self

    @model_validator(mode="after")
    def _volumes_are_apart(self) -> Self:
        parts = [*self.processes, *self.cron]
        mounts: dict[str, str] = {}
        for name, volume in self.volumes.items():
            for part in volume.processes or []:
                if part not in parts:
                    raise ValueError(f"volumes.{name}.processes: {part!r} is not one of {', '.join(parts)}")
            if volume.mount in mounts:
                raise ValueError(f"volumes.{name}.mount: {volume.mount} is also the mount of {mounts[volume.mount]!r}")
            mounts[volume.mount] = name
        return self
