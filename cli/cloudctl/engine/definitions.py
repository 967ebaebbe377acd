"""Service definitions: one ``service.yml`` a service, read into typed, checked objects.

Everything else iterates these objects; no other code names a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cloudctl.errors import ConfigError
from cloudctl.paths import data_root

PHASES = ("network", "infrastructure", "identity", "control", "compute")
"""The order in which services are brought up."""

SERVED = ("frontends", "messaging")
"""What a service may ask for that another one's container serves (``serves``) by reading its files again."""

_SERVICE_KEYS = {
    "name", "description", "phase", "after", "settings", "secrets", "databases", "messaging", "identity",
    "frontends", "ceph", "files", "containers", "jobs", "only", "packages", "sections", "status",
    "kernel_modules", "members", "leftovers",
}  # fmt: skip
_CONTAINER_KEYS = {
    "image", "group", "command", "files", "permissions", "volumes", "environment", "privileged", "pid", "ipc",
    "cgroupns", "user", "tmpfs", "devices", "cap_add", "ulimits", "stop_grace_period", "stop_signal",
    "hostname", "init", "healthcheck", "reload", "only", "enabled", "security_opt", "description",
    "serves", "ports",
}  # fmt: skip
_JOB_KEYS = {
    "name", "container", "environment", "command", "at", "phase", "node", "inputs", "needs", "once", "only",
    "timeout", "description", "user",
}  # fmt: skip
CLUSTER_KINDS = ("galera", "erlang", "ovsdb", "vip")
"""Kinds of clusters whose state can be read and judged, in the order in which they are told.

``vip`` is not asked: its addresses are looked for on the nodes.
"""
COMPOSE_PASSTHROUGH = (
    "privileged", "pid", "ipc", "user", "tmpfs", "devices", "cap_add", "ulimits",
    "stop_signal", "hostname", "init", "security_opt",
)  # fmt: skip


@dataclass(frozen=True)
class FileUse:
    """A configuration file as one container reads it (an entry of config.json)."""

    file: str
    dest: str
    owner: str
    perm: str
    only: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file of a service: where its template is and how overrides merge into it."""

    name: str
    template: Path
    format: str
    service: str


@dataclass(frozen=True)
class Container:
    """A container that runs on every node of its groups."""

    name: str
    service: str
    image: str
    groups: tuple[str, ...]
    command: Any
    files: tuple[FileUse, ...]
    permissions: tuple[Mapping[str, Any], ...]
    volumes: tuple[Any, ...]
    environment: Mapping[str, str]
    healthcheck: Mapping[str, Any]
    stop_grace_period: str
    reload: Mapping[str, Any]
    options: Mapping[str, Any]
    cgroupns: str | None
    only: Mapping[str, Any]
    enabled: str | None
    serves: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cluster:
    """How a clustered service tells its state.

    Attributes:
        name: unique; where the answers are kept.
        kind: how an answer is read and judged, one of ``CLUSTER_KINDS``.
        title: what an operator calls it.
        container: runs on every member.
        command: what is asked inside it; empty: nothing.
        user: as whom; empty: the container's.
    """

    name: str
    service: str
    kind: str
    title: str
    container: str
    command: tuple[str, ...]
    user: str


@dataclass(frozen=True)
class Job:
    """A one-shot container, run before or after the containers of a phase."""

    name: str
    service: str
    container: str
    command: Any
    environment: Mapping[str, str]
    at: str
    phase: str
    node: str
    inputs: tuple[str, ...]
    needs: tuple[str, ...]
    once: bool
    only: Mapping[str, Any]
    timeout: int
    user: str | None

    @property
    def id(self) -> str:
        """Name of the one-shot container, unique in the cloud."""
        return f"cloudctl-job-{self.service}-{self.name}"


@dataclass(frozen=True)
class Service:
    """Everything that cloudctl knows about one service."""

    name: str
    description: str
    phase: str
    after: tuple[str, ...]
    path: Path
    containers: tuple[Container, ...]
    files: Mapping[str, ConfigFile]
    jobs: tuple[Job, ...]
    frontends: tuple[Mapping[str, Any], ...]
    raw: Mapping[str, Any]
    clusters: tuple[Cluster, ...] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The declared settings: key to ``{type, default, description}``."""
        found: Mapping[str, Any] = self.raw.get("settings") or {}
        return found


def service_directories(site_path: Path | None) -> list[Path]:
    """Return the directories that hold a ``service.yml``: ours, then those of the site.

    A directory whose name starts with ``_`` holds what several services share.
    """
    roots = [data_root() / "services"]
    if site_path is not None:
        roots.append(site_path / "services")
    return [
        entry
        for root in roots
        if root.is_dir()
        for entry in sorted(root.iterdir())
        if (entry / "service.yml").is_file() and not entry.name.startswith("_")
    ]


def load_services(site_path: Path | None = None) -> list[Service]:
    """Read every service definition, ordered by phase and by ``after``.

    Raises:
        ConfigError: a definition is malformed.
    """
    services = [load_service(directory) for directory in service_directories(site_path)]
    _check_unique(services)
    return order_services(services)


def load_service(directory: Path) -> Service:
    """Read and check one definition."""
    where = directory / "service.yml"
    try:
        raw = yaml.load(where.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError("service-yaml", f"malformed YAML: {error}", where=f"{where}{line}") from error
    if not isinstance(raw, dict):
        raise ConfigError("service-yaml", "a service definition is a mapping", where=str(where))
    _unknown(raw, _SERVICE_KEYS, where, "service")
    name = raw.get("name")
    if name != directory.name:
        raise ConfigError(
            "service-name", f"name is {name!r}, the directory is {directory.name!r}", where=str(where)
        )
    phase = raw.get("phase")
    if phase not in PHASES:
        raise ConfigError(
            "service-phase", f"phase is {phase!r}, one of: {', '.join(PHASES)}", where=str(where)
        )
    files = {
        key: ConfigFile(key, directory / "templates" / value["template"], value.get("format", "raw"), name)
        for key, value in (raw.get("files") or {}).items()
    }
    for config in files.values():
        if not config.template.is_file():
            raise ConfigError(
                "service-template", f"template {config.template.name} is missing", where=str(where)
            )
    containers = tuple(
        _container(name, key, value, files, where) for key, value in (raw.get("containers") or {}).items()
    )
    names = {container.name for container in containers}
    jobs = tuple(_job(name, phase, value, names, where) for value in raw.get("jobs") or [])
    frontends = tuple(raw.get("frontends") or ())
    return Service(
        name, str(raw.get("description", "")), phase, tuple(raw.get("after") or ()), directory,
        containers, files, jobs, frontends, raw, _clusters(name, raw, names, where),
    )  # fmt: skip


def order_services(services: Sequence[Service]) -> list[Service]:
    """Sort by phase, then so that a service comes behind those it names in ``after``, then by name."""
    by_name = {service.name: service for service in services}
    done: dict[str, Service] = {}

    def visit(service: Service, trail: tuple[str, ...]) -> None:
        if service.name in done:
            return
        if service.name in trail:
            raise ConfigError(
                "service-cycle", f"services wait for each other: {' -> '.join((*trail, service.name))}"
            )
        for other in service.after:
            if other in by_name and by_name[other].phase == service.phase:
                visit(by_name[other], (*trail, service.name))
        done[service.name] = service

    for service in sorted(services, key=lambda item: (PHASES.index(item.phase), item.name)):
        visit(service, ())
    return sorted(done.values(), key=lambda item: PHASES.index(item.phase))


def _container(
    service: str, name: str, value: Mapping[str, Any], files: Mapping[str, ConfigFile], where: Path
) -> Container:
    _unknown(value, _CONTAINER_KEYS, where, f"container {name}")
    for key in ("image", "group"):
        if key not in value:
            raise ConfigError("service-container", f"container {name} has no {key}", where=str(where))
    uses = []
    for use in value.get("files") or ():
        if use["file"] not in files:
            raise ConfigError(
                "service-file", f"container {name} reads {use['file']}, which files: lacks", where=str(where)
            )
        uses.append(
            FileUse(
                use["file"],
                use["dest"],
                use.get("owner", "root"),
                str(use.get("perm", "0600")),
                use.get("only") or {},
            )
        )
    group = value["group"]
    return Container(
        name=name,
        service=service,
        image=value["image"],
        groups=(group,) if isinstance(group, str) else tuple(group),
        command=value.get("command"),
        files=tuple(uses),
        permissions=tuple(value.get("permissions") or ()),
        volumes=tuple(value.get("volumes") or ()),
        environment={key: str(item) for key, item in (value.get("environment") or {}).items()},
        healthcheck=value.get("healthcheck") or {},
        stop_grace_period=str(value.get("stop_grace_period", "30s")),
        reload=value.get("reload") or {},
        options={key: value[key] for key in COMPOSE_PASSTHROUGH if key in value},
        cgroupns=value.get("cgroupns"),
        only=value.get("only") or {},
        enabled=value.get("enabled"),
        serves=_serves(name, value, where),
        ports=tuple(int(port) for port in value.get("ports") or ()),
    )


def _clusters(
    service: str, raw: Mapping[str, Any], containers: Iterable[str], where: Path
) -> tuple[Cluster, ...]:
    found = []
    for entry in raw.get("status") or ():
        _unknown(entry, {"name", "kind", "title", "container", "command", "user"}, where, "status")
        for key in ("name", "kind", "container"):
            if key not in entry:
                raise ConfigError("service-status", f"an entry of status has no {key}", where=str(where))
        if entry["kind"] not in CLUSTER_KINDS:
            raise ConfigError(
                "service-status", f"status {entry['name']}: kind is {entry['kind']!r}, one of: "
                f"{', '.join(CLUSTER_KINDS)}", where=str(where),
            )  # fmt: skip
        if entry["container"] not in set(containers):
            raise ConfigError(
                "service-status",
                f"status {entry['name']} names no container of the service",
                where=str(where),
            )
        found.append(
            Cluster(
                name=entry["name"],
                service=service,
                kind=entry["kind"],
                title=entry.get("title", entry["name"]),
                container=entry["container"],
                command=tuple(entry.get("command") or ()),
                user=entry.get("user", ""),
            )
        )
    return tuple(found)


def _serves(container: str, value: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    for kind in value.get("serves") or ():
        if kind not in SERVED:
            raise ConfigError(
                "service-serves", f"container {container} serves {kind!r}, one of: {', '.join(SERVED)}",
                where=str(where),
            )  # fmt: skip
    return tuple(value.get("serves") or ())


def _job(service: str, phase: str, value: Mapping[str, Any], containers: Iterable[str], where: Path) -> Job:
    _unknown(value, _JOB_KEYS, where, f"job {value.get('name')}")
    if value.get("container") not in set(containers):
        raise ConfigError(
            "service-job", f"job {value.get('name')} names no container of the service", where=str(where)
        )
    return Job(
        name=value["name"],
        service=service,
        container=value["container"],
        command=value.get("command"),
        environment={key: str(item) for key, item in (value.get("environment") or {}).items()},
        at=value.get("at", "before"),
        phase=value.get("phase", phase),
        node=value.get("node", "first"),
        inputs=tuple(value.get("inputs") or ("image", "command")),
        needs=tuple(value.get("needs") or ()),
        once=bool(value.get("once", False)),
        only=value.get("only") or {},
        timeout=int(value.get("timeout", 600)),
        user=value.get("user"),
    )


def _unknown(value: Mapping[str, Any], known: set[str], where: Path, what: str) -> None:
    for key in value:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            hint = f"did you mean {close[0]!r}?" if close else None
            raise ConfigError("service-key", f"{what}: unknown key {key!r}", where=str(where), hint=hint)


def _check_unique(services: Sequence[Service]) -> None:
    """Containers, configuration files and ports are named once in the whole cloud."""
    seen: dict[tuple[str, str], str] = {}
    for service in services:
        names = [("container", container.name) for container in service.containers]
        names += [("configuration file", name) for name in service.files]
        names += [("frontend", frontend["name"]) for frontend in service.frontends]
        names += [("status", cluster.name) for cluster in service.clusters]
        for key in names:
            if key in seen:
                raise ConfigError(
                    "service-duplicate",
                    f"{key[0]} {key[1]} is defined by {seen[key]} and by {service.name}",
                    where=str(service.path / "service.yml"),
                )
            seen[key] = service.name


try:
    _Loader: Any = yaml.CSafeLoader
except AttributeError:  # PyYAML built without libyaml: slower, same result
    _Loader = yaml.SafeLoader
