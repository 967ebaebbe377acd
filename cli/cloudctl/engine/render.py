"""The desired state of every node, rendered on the controller: pure, from the site and the definitions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

from cloudctl.ceph import desired as ceph_desired
from cloudctl.cluster import desired as cluster_desired
from cloudctl.engine.definitions import PHASES, SERVED, ConfigFile, Container, Job, Service, load_services
from cloudctl.engine.merge import merge
from cloudctl.engine.network import network_spec
from cloudctl.errors import ConfigError
from cloudctl.paths import data_root
from cloudctl.site.model import Node, Site

CA_PATH = "/etc/ssl/certs/cloudctl-ca.crt"
COMPOSE_PATH = "/etc/cloudctl/compose.yml"
CONFIG_ROOT = "/etc/kolla"
PROJECT = "cloudctl"
LABEL = "cloudctl.parts"
Spec = dict[str, Any]
_DIFFERS = frozenset({"node", "container", "container_group", "container_groups"})
"""What a template may read that is not the same for all nodes and containers."""
_HEALTHCHECK = {
    "interval": "30s",
    "timeout": "10s",
    "retries": 3,
    "start_period": "120s",
    "start_interval": "1s",
}


def digest(value: object) -> str:
    """Return a short, stable hash of text or of a JSON-like value."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Renderer:
    """Renders node specs of one site.

    Args:
        site: the loaded site, with its secrets.
        services: the definitions; read from the product and the site when not given.
    """

    def __init__(self, site: Site, services: Sequence[Service] | None = None) -> None:
        self.site = site
        loaded = list(services) if services is not None else load_services(Path(site.path))
        self.services = [service for service in loaded if self._service_enabled(service)]
        self._frontends = {
            front["name"]: {**front, "service": s.name} for s in self.services for front in s.frontends
        }
        self._service_settings = {service.name: self._settings_of(service) for service in self.services}
        self._files = {name: config for service in self.services for name, config in service.files.items()}
        self._overrides: dict[Path, str | None] = {}
        self._rendered: dict[tuple[str, str, str], str] = {}
        self._texts: dict[tuple[Any, ...], str] = {}
        self._reads: dict[str, frozenset[str]] = {}
        self._snippets: dict[str, jinja2.Template] = {}
        directories = {service.name: service.path / "templates" for service in self.services}
        shared = [data_root() / "services" / "_common", data_root() / "roles" / "node" / "templates"]

        def source(name: str) -> tuple[str, str, Any] | None:
            owner, _, rest = name.partition("::")
            roots = (
                [directories[owner]] if rest and owner in directories else [*shared, *directories.values()]
            )
            for root in roots:
                path = root / (rest or name)
                if path.is_file():
                    return path.read_text(encoding="utf-8"), str(path), lambda: True
            return None

        self._environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(source),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,
        )
        self._environment.filters["combine_options"] = lambda ours, site_options: {
            **ours,
            **(site_options or {}),
        }
        self._environment.filters["to_json"] = lambda value: json.dumps(value, indent=2, sort_keys=True)
        self._environment.filters["password_hash"] = cluster_desired.password_hash
        self._environment.globals.update(self._globals())

    # -- selection -----------------------------------------------------------------------------

    def _service_enabled(self, service: Service) -> bool:
        return bool(self.site.get(f"services.{service.name}.enabled", True)) and self.matches(
            service.raw.get("only")
        )

    def _settings_of(self, service: Service) -> dict[str, Any]:
        return {
            key: self.site.get(f"services.{service.name}.{key}", declared.get("default"))
            for key, declared in service.settings.items()
        }

    def matches(self, only: Mapping[str, Any] | None) -> bool:
        """Whether every setting named by ``only`` has the wanted value (or one of a list of values)."""
        for key, wanted in (only or {}).items():
            value = self.site.get(key)
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def containers_of(self, node: Node) -> Iterator[Container]:
        """Yield the containers that run on a node, in bring-up order."""
        for service in self.services:
            for container in service.containers:
                if not set(container.groups) & set(node.groups):
                    continue
                if container.enabled is not None and not self.site.get(container.enabled):
                    continue
                if self.matches(container.only):
                    yield container

    def managed_nodes(self) -> list[Node]:
        """Return the nodes that a deploy works on: those in ``newnodes`` wait to be added."""
        return [node for node in self.site.nodes.values() if "newnodes" not in node.groups]

    # -- template context ----------------------------------------------------------------------

    def _globals(self) -> dict[str, Any]:
        site = self.site
        vip = {
            "internal": site.get("vip.internal"),
            "external": site.get("vip.external") or site.get("vip.internal"),
        }
        storage = site.networks.get("storage")
        return {
            "site": site,
            "group": site.group,
            "address": lambda node, network="management": node.address_on(network),
            "hosts": {node.name: node.address for node in site.nodes.values()},
            "nodes": site.nodes,
            "networks": site.networks,
            "vip": vip,
            "secret": self.secret,
            "database_url": self._database_url,
            "transport_url": self._transport_url,
            "memcached_servers": ",".join(f"{node.address}:11211" for node in site.group("control")),
            "endpoint": self._endpoint,
            "auth_url": self._auth_url(),
            "region": site.get("cloud.region"),
            "ca_path": CA_PATH,
            "services": self.services,
            "all_frontends": list(self._frontends.values()),
            "image_set": site.get("image_set"),
            "release": site.get("release"),
            "ceph": {
                "fsid": site.secrets.get("ceph_fsid", ""),
                "mon_host": ceph_desired.mon_hosts(site),
                "public_network": str(storage.cidr) if storage else "",
            },
            "cluster_state": self._cluster_state,
            "package_key": self._package_key(),
        }

    def _package_key(self) -> str:
        """Return the public key of the package repository, or nothing.

        Raises:
            ConfigError: the file is not there, or is no public key in ASCII armor.
        """
        name = self.site.get("packages.key", None)
        if not name:
            return ""
        path = Path(self.site.path) / str(name)
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, ValueError):
            text = ""
        if "-----BEGIN PGP PUBLIC KEY BLOCK-----" not in text:
            raise ConfigError(
                "package-key", f"packages.key names {name}, which is no public key in ASCII armor",
                where=str(path), hint="gpg --armor --export KEY >FILE, where the repository is signed",
            )  # fmt: skip
        return text

    def secret(self, name: str) -> str:
        """Return a secret's value.

        Raises:
            ConfigError: the site has no such secret.
        """
        try:
            return self.site.secrets[name]
        except KeyError:
            raise ConfigError(
                "secret-missing", f"the site has no secret {name!r}", where=f"{self.site.path}/secrets.yml",
                hint="cloudctl secrets generate fills what is missing",
            ) from None  # fmt: skip

    def _cluster_state(self) -> str:
        return json.dumps(
            cluster_desired.build(self.site, [service.raw for service in self.services]), sort_keys=True
        )

    def _database_url(self, user: str, database: str | None = None) -> str:
        password = self.secret(f"{user}_database_password")
        return f"mysql+pymysql://{user}:{password}@{self.site.get('vip.internal')}:3306/{database or user}"

    def _transport_url(self, user: str) -> str:
        messaging = [
            s.raw["messaging"] for s in self.services if (s.raw.get("messaging") or {}).get("user") == user
        ]
        if not messaging:
            raise ConfigError("messaging-user", f"no service declares the messaging user {user!r}")
        password = self.secret(f"{user}_messaging_password")
        hosts = ",".join(f"{user}:{password}@{node.address}:5672" for node in self.site.group("control"))
        return f"rabbit://{hosts}/{messaging[0].get('vhost', '')}"

    def _endpoint(self, frontend: str, scope: str = "internal") -> str:
        front = self._frontends.get(frontend)
        if front is None:
            fronts = [item for item in self._frontends.values() if item["service"] == frontend]
            if not fronts:
                raise ConfigError("frontend-unknown", f"no service declares the frontend {frontend!r}")
            front = fronts[0]
        address = self.site.get("vip.internal")
        if scope == "external":
            address = self.site.get("vip.external") or address
        port = front.get("public_port", front["port"]) if scope == "external" else front["port"]
        return f"https://{address}:{port}"

    def _auth_url(self) -> str:
        for service in self.services:
            for entry in (service.raw.get("identity") or {}).get("services") or []:
                if entry.get("type") == "identity":
                    front = self._frontends[entry["frontend"]]
                    return f"https://{self.site.get('vip.internal')}:{front['port']}/v3"
        return ""

    # -- files ---------------------------------------------------------------------------------

    def _override(self, path: Path) -> str | None:
        if path not in self._overrides:
            self._overrides[path] = path.read_text(encoding="utf-8") if path.is_file() else None
        return self._overrides[path]

    def template(self, name: str, where: str, **context: Any) -> str:
        """Render one template; an error names the template's file and line.

        Rendered once for all nodes and containers that look the same to the template: what every node
        gets (its size grows with the cloud) would else cost the square of their number.
        """
        try:
            key = (name, *(
                (read, getattr(context[read], "name", context[read]))
                for read in sorted(self._differences(name)) if read in context
            ))  # fmt: skip
            if key not in self._texts:
                self._texts[key] = self._environment.get_template(name).render(**context)
            return self._texts[key]
        except jinja2.TemplateNotFound as error:
            raise ConfigError("template-missing", f"template {error.name} is missing", where=where) from error
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None) or _template_line(error)
            raise ConfigError(
                "template-error", f"{name.replace('::', '/templates/')}: {error.message or error}",
                where=f"{where}{f' line {line}' if line else ''}",
            ) from error  # fmt: skip

    def _differences(self, name: str) -> frozenset[str]:
        """Return what a template, or one that it brings in, reads of ``_DIFFERS``."""
        if name not in self._reads:
            self._reads[name] = frozenset()  # for templates that bring each other in
            loader = self._environment.loader
            assert loader is not None
            tree = self._environment.parse(loader.get_source(self._environment, name)[0], name)
            found = _DIFFERS & jinja2.meta.find_undeclared_variables(tree)
            for other in jinja2.meta.find_referenced_templates(tree):
                found |= _DIFFERS if other is None else self._differences(other)
            self._reads[name] = found
        return self._reads[name]

    def _snippet(self, text: str) -> jinja2.Template:
        """Return a template given as text, compiled once."""
        if text not in self._snippets:
            self._snippets[text] = self._environment.from_string(text)
        return self._snippets[text]

    def file_content(self, config: ConfigFile, node: Node, container: Container) -> str:
        """Render one configuration file as one container on one node reads it, overrides merged."""
        key = (config.name, node.name, container.name)
        if key not in self._rendered:
            text = self.template(
                f"{config.service}::{config.template.name}",
                str(config.template),
                node=node,
                container=container.name,
                container_group=container.groups[0],
                container_groups=container.groups,
                s=self._service_settings[config.service],
            )
            base = Path(self.site.path) / "overrides"
            stem, dot, suffix = config.name.rpartition(".")
            specific = base / (stem or suffix) / f"{node.name}{dot if stem else ''}{suffix if stem else ''}"
            layers = [
                layer
                for layer in (self._override(base / config.name), self._override(specific))
                if layer is not None
            ]
            try:
                self._rendered[key] = merge(text, layers, config.format)
            except (ValueError, yaml.YAMLError) as error:
                raise ConfigError(
                    "override-malformed", f"{config.name}: {error}", where=str(base / config.name)
                ) from error
        return self._rendered[key]

    def command(self, value: Any) -> str:
        """Return the command for the site's image set."""
        if isinstance(value, Mapping):
            chosen = value.get(self.site.get("image_set"))
            if chosen is None:
                raise ConfigError(
                    "command-image-set", f"no command for image set {self.site.get('image_set')!r}"
                )
            return str(chosen)
        return str(value or "")

    def image(self, name: str) -> str:
        """Return the pinned reference of an image.

        Raises:
            ConfigError: the site's images.lock.json does not name it.
        """
        entry = self.site.images.get(name)
        if entry is None:
            raise ConfigError(
                "image-missing", f"image {name!r} is not in the site's images.lock.json",
                where=f"{self.site.path}/images.lock.json", hint=f"cloudctl image build {name}",
            )  # fmt: skip
        return str(entry["reference"])

    # -- a node --------------------------------------------------------------------------------

    def container_state(self, node: Node, container: Container) -> tuple[Spec, list[Spec]]:
        """Return a container's compose service (with its parts as label) and its files."""
        directory = f"{CONFIG_ROOT}/{container.name}"
        files: list[Spec] = []
        config_files = []
        parts: dict[str, str] = {"image": self.image(container.image)}
        reload_files = set(container.reload.get("files") or ())
        contents = [
            (use, self.file_content(self._files[use.file], node, container))
            for use in container.files
            if self.matches(use.only)
        ]
        reloads = {}
        for use, content in contents:
            files.append(_file(f"{directory}/{use.file}", content, "config", container.name))
            config_files.append(
                {
                    "source": f"/var/lib/kolla/config_files/{use.file}",
                    "dest": use.dest,
                    "owner": use.owner,
                    "perm": use.perm,
                }
            )
            if use.file in reload_files:
                reloads[use.file] = digest(content)
            else:
                parts[f"file:{use.file}"] = digest(content)
        ca = self.site.secrets.get("ca_certificate")
        if ca:
            files.append(_file(f"{directory}/cloudctl-ca.crt", ca, "config", container.name))
            config_files.append(
                {
                    "source": "/var/lib/kolla/config_files/cloudctl-ca.crt",
                    "dest": CA_PATH,
                    "owner": "root",
                    "perm": "0644",
                }
            )
            parts["file:cloudctl-ca.crt"] = digest(ca)
        config = {
            "command": self.command(container.command),
            "config_files": config_files,
            "permissions": [dict(item) for item in container.permissions],
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        files.append(_file(f"{directory}/config.json", text, "config", container.name))
        parts["config.json"] = digest(text)
        environment = {
            "KOLLA_CONFIG_STRATEGY": "COPY_ALWAYS",
            "KOLLA_SERVICE_NAME": container.name.replace("_", "-"),
            **container.environment,
        }
        volumes = [f"{directory}/:/var/lib/kolla/config_files/:ro", "/etc/localtime:/etc/localtime:ro"]
        for volume in container.volumes:
            if isinstance(volume, str):
                volumes.append(volume)
            elif self.matches(volume.get("only")):
                volumes.append(volume["volume"])
        compose: Spec = {
            "image": parts["image"],
            "container_name": container.name,
            "network_mode": "host",
            "restart": "unless-stopped",
            "environment": environment,
            "volumes": volumes,
            "stop_grace_period": container.stop_grace_period,
            **{key: value for key, value in container.options.items()},
        }
        if container.cgroupns:
            compose["cgroup"] = container.cgroupns
        if container.healthcheck:
            compose["healthcheck"] = _healthcheck(
                self._snippet(json.dumps(dict(container.healthcheck))).render(
                    node=node, container=container.name, s=self._service_settings[container.service]
                )
            )
        for key, value in compose.items():
            if key not in ("image", "container_name", "network_mode", "restart"):
                parts[key] = digest(value)
        compose["labels"] = {LABEL: json.dumps(parts, sort_keys=True, separators=(",", ":"))}
        state = {
            "service": container.service,
            "phase": self._phase_of[container.service],
            "parts": parts,
            "reload": {"files": reloads, "command": container.reload["command"]} if reloads else {},
            "compose": compose,
            **({"serves": list(container.serves)} if container.serves else {}),
        }
        return state, files

    @cached_property
    def _phase_of(self) -> dict[str, str]:
        return {service.name: service.phase for service in self.services}

    def node_spec(self, node: Node) -> Spec:
        """Return everything that one node should be, as the node-side module takes it."""
        files: list[Spec] = []
        containers: dict[str, Spec] = {}
        for container in self.containers_of(node):
            state, container_files = self.container_state(node, container)
            containers[container.name] = state
            files += container_files
        compose = {
            "name": PROJECT,
            "services": {name: _escape(state.pop("compose")) for name, state in containers.items()},
            "volumes": {name: {"name": name} for name in _named_volumes(containers, self, node)},
        }
        files.append(_file(COMPOSE_PATH, _dump(compose), "compose"))
        base = self._base(node)
        return {
            "schema": 1,
            "node": node.name,
            "groups": list(node.groups),
            **base,
            "files": base["files"] + files,
            "network": network_spec(self.site, node),
            "managed": [CONFIG_ROOT],
            "containers": containers,
            "images": _unique(state["parts"]["image"] for state in containers.values()),
            "jobs": [self._job_state(node, job, containers) for job in self._jobs_on(node, containers)],
            "sections": self._sections(node, containers),
        }

    def _base(self, node: Node) -> Spec:
        """Base settings and container engine of one node, from ``roles/node/node.yml``."""
        data = _node_definition()
        files = []
        for entry in data["files"]:
            if not self._wanted_on(entry, node):
                continue
            content = self.template(entry["template"], entry["template"], node=node)
            files.append(
                {
                    **_file(entry["path"], content, entry["area"]),
                    "mode": entry.get("mode", "0644"),
                    "apply": entry.get("apply", []),
                }
            )
        packages = [
            name for entry in data["packages"] if self._wanted_on(entry, node) for name in entry["names"]
        ] + [name for s in self.services if _runs_on(s, node) for name in s.raw.get("packages") or ()]
        units = [entry for entry in data["units"] if self._wanted_on(entry, node)]
        return {
            "packages": sorted(set(packages)),
            "units": [
                {key: entry[key] for key in ("name", "state", "enabled") if key in entry} for entry in units
            ],
            "files": files,
            "apply": data["apply"],
        }

    def _wanted_on(self, entry: Mapping[str, Any], node: Node) -> bool:
        groups = entry.get("groups")
        if groups and not set(groups) & set(node.groups):
            return False
        if entry.get("set") and not self.site.get(entry["set"]):
            return False
        return self.matches(entry.get("only"))

    def _jobs_on(self, node: Node, containers: Mapping[str, Spec]) -> Iterator[Job]:
        for service in self.services:
            for job in service.jobs:
                if job.container in containers and self.matches(job.only):
                    yield job

    def _job_state(self, node: Node, job: Job, containers: Mapping[str, Spec]) -> Spec:
        parts = containers[job.container]["parts"]
        command = self.command(job.command)
        inputs: dict[str, str] = {}
        for name in job.inputs:
            if name == "image":
                inputs[name] = parts["image"]
            elif name == "command":
                inputs[name] = digest([command, job.environment])
            elif name.startswith("group:"):
                inputs[name] = ",".join(sorted(item.name for item in self.site.group(name[6:])))
            elif name.startswith("file:"):
                inputs[name] = parts.get(name) or "absent"
            else:
                raise ConfigError("job-input", f"job {job.id}: unknown input {name!r}")
        container = next(
            c for s in self.services if s.name == job.service for c in s.containers if c.name == job.container
        )
        first = next(n.name for n in self.managed_nodes() if set(n.groups) & set(container.groups))
        return {
            "id": job.id,
            "name": job.name,
            "service": job.service,
            "container": job.container,
            "command": command,
            "environment": {key: self._text(value, node) for key, value in job.environment.items()},
            "at": job.at,
            "phase": job.phase,
            "once": job.once,
            "everywhere": job.node == "all",
            "first": first,
            "inputs": inputs,
            "needs": [f"cloudctl-job-{job.service}-{need}" for need in job.needs],
            "timeout": job.timeout,
            "user": job.user,
        }

    def _text(self, value: str, node: Node) -> str:
        """Return a value of a definition with its expressions filled in."""
        return self._snippet(value).render(node=node) if "{{" in value else value

    def _sections(self, node: Node, containers: Mapping[str, Spec]) -> list[Spec]:
        """Cluster-wide state (databases, accounts, registrations) that one coordinator reconciles."""
        found = []
        for service in self.services:
            for entry in service.raw.get("sections") or ():
                if entry["container"] not in containers:
                    continue
                first = next(n.name for n in self.site.group("control"))
                if node.name == first:
                    found.append({**entry, "service": service.name})
        return found

    def ceph(self) -> Spec | None:
        """Return the desired state of the Ceph cluster, or None where the site has no storage."""
        if not self.site.group("storage"):
            return None
        definitions = [service.raw for service in self.services]
        return {
            "desired": ceph_desired.build(self.site, definitions),
            "secrets": ceph_desired.secrets(self.site, definitions),
        }


def needs_of(service: Service) -> list[str]:
    """Return what a service needs of others: kinds that containers serve, and ``kind name`` of Ceph's."""
    ceph = service.raw.get("ceph") or {}
    clients = [*([ceph["client"]] if ceph.get("client") else []), *(ceph.get("clients") or ())]
    return [
        *(key for key in SERVED if service.raw.get(key)),
        *(f"pool {pool['name']}" for pool in ceph.get("pools") or ()),
        *(f"client {client['name']}" for client in clients),
    ]


def _file(path: str, content: str, area: str, container: str = "") -> Spec:
    return {
        "path": path,
        "content": content,
        "mode": "0600",
        "area": area,
        "container": container,
        "apply": [],
    }


def _healthcheck(text: str) -> Spec:
    # Often at first, so that waiting for a new container takes no longer than its start; seldom afterwards.
    check: Spec = {**_HEALTHCHECK, **json.loads(text)}
    test = check.get("test")
    if isinstance(test, str):
        check["test"] = ["CMD-SHELL", test]
    return check


def _escape(value: Any) -> Any:
    """Compose interpolates ``$``; our values mean what they say."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return value


def _dump(value: object) -> str:
    # JSON is YAML: one format that keeps the order, quotes everything and needs no YAML library to read.
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _named_volumes(containers: Mapping[str, Spec], renderer: Renderer, node: Node) -> list[str]:
    names = set()
    for container in renderer.containers_of(node):
        for volume in container.volumes:
            text = volume if isinstance(volume, str) else volume["volume"]
            source = text.split(":", 1)[0]
            if not source.startswith("/"):
                names.add(source)
    return sorted(names)


def _unique(values: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _runs_on(service: Service, node: Node) -> bool:
    return any(set(container.groups) & set(node.groups) for container in service.containers)


@lru_cache(maxsize=1)
def _node_definition() -> Spec:
    data: Spec = yaml.safe_load((data_root() / "roles" / "node" / "node.yml").read_text(encoding="utf-8"))
    return data


def _template_line(error: BaseException) -> int | None:
    """Return the line of the template in which an error arose, from its traceback."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(".j2"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def render_site(site: Site, services: Sequence[Service] | None = None) -> dict[str, Any]:
    """Return ``{"nodes": {name: spec}, "ceph": …, "phases": …, "needs": {service: …}}`` of a whole site."""
    renderer = Renderer(site, services)
    return {
        "nodes": {node.name: renderer.node_spec(node) for node in renderer.managed_nodes()},
        "ceph": renderer.ceph(),
        "phases": list(PHASES),
        "needs": {service.name: needs_of(service) for service in renderer.services},
    }


def desired_containers(site: Site) -> dict[str, list[dict[str, str]]]:
    """Return, by node, the containers that should run: ``{"name", "service"}``."""
    renderer = Renderer(site)
    return {
        node.name: [{"name": c.name, "service": c.service} for c in renderer.containers_of(node)]
        for node in renderer.managed_nodes()
    }
