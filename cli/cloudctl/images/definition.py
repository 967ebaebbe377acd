"""The image definitions of ``images/images.yml``: read, checked, and turned into what a build needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from cloudctl.errors import ConfigError, UsageError

_KEYS = {
    "parent": str,
    "bootstrap": bool,
    "publish": bool,
    "packages": list,
    "users": list,
    "extra_groups": list,
    "groups": dict,
    "user": str,
    "log": str,
    "env": dict,
    "labels": dict,
    "entrypoint": list,
    "cmd": list,
    "wheels": dict,
    "remove": list,
    "repository": str,
    "tags": list,
}


@dataclass(frozen=True)
class User:
    """An account that exists in an image: its id is the group's id too."""

    name: str
    id: int
    home: str
    shell: str = "/usr/sbin/nologin"


@dataclass(frozen=True)
class Image:
    """One image as ``images.yml`` describes it."""

    name: str
    parent: str | None
    repository: str
    bootstrap: bool = False
    publish: bool = True
    packages: tuple[str, ...] = ()
    users: tuple[User, ...] = ()
    extra_groups: Mapping[str, int] = field(default_factory=dict)
    memberships: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    user: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    wheel_python: str = ""
    wheels: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    directory: Path | None = None

    @property
    def files(self) -> Path | None:
        """The directory copied onto the image's root, if the image has one."""
        return self._existing("files")

    @property
    def setup(self) -> Path | None:
        """The script run after the packages, if the image has one."""
        return self._existing("setup.sh")

    @property
    def installs(self) -> bool:
        """Whether the build runs anything (otherwise only the configuration differs from the parent's)."""
        return bool(self.packages or self.users or self.remove or self.setup or self.memberships)

    def _existing(self, name: str) -> Path | None:
        path = self.directory / name if self.directory else None
        return path if path is not None and path.exists() else None


@dataclass(frozen=True)
class Catalogue:
    """Everything in ``images.yml``."""

    directory: Path
    release: str
    namespace: str
    suite: str
    components: tuple[str, ...]
    images: Mapping[str, Image]

    def get(self, name: str) -> Image:
        """Return the image `name`.

        Raises:
            UsageError: there is none of that name.
        """
        try:
            return self.images[name]
        except KeyError:
            raise UsageError(
                "image-unknown",
                f"there is no image named {name!r}",
                where=str(self.directory / "images.yml"),
                hint="`cloudctl image list` shows the names",
            ) from None

    def order(self, names: Iterable[str] = ()) -> list[Image]:
        """Return the images `names` (default: all that are published) and their ancestors, parents first."""
        wanted = [self.get(name) for name in names] or [i for i in self.images.values() if i.publish]
        ordered: dict[str, Image] = {}
        for image in wanted:
            chain: list[Image] = []
            current: Image | None = image
            while current is not None:
                chain.append(current)
                current = self.images[current.parent] if current.parent else None
            for ancestor in reversed(chain):
                ordered.setdefault(ancestor.name, ancestor)
        return list(ordered.values())

    def keys(self) -> dict[str, str]:
        """Return each image's content address: a hash of its definition, its files and its parent's address.

        Package versions are not part of it: a rebuild with newer packages is asked for (``--rebuild``).
        """
        keys: dict[str, str] = {}
        for image in self.order(self.images):
            digest = hashlib.sha256()
            parent = keys[image.parent] if image.parent else f"{self.suite} {self.components}"
            files = tree_digest(image.files) if image.files else ""
            for part in (parent, files, *self.render(image).values()):
                digest.update(f"{len(part)}:{part}\n".encode())
            keys[image.name] = digest.hexdigest()[:16]
        return keys

    def render(self, image: Image, parent_reference: str = "PARENT") -> dict[str, str]:
        """Return the build's files by name: Containerfile, install.sh and the image's own ones."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(self.directory),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        context = {
            "parent": parent_reference,
            "copies": image.files is not None,
            "installs": image.installs,
            "env": dict(image.env),
            "labels": dict(image.labels),
            "user": image.user,
            "entrypoint": image.entrypoint,
            "cmd": image.cmd,
            "groups": dict(image.extra_groups),
            "users": image.users,
            "memberships": dict(image.memberships),
            "packages": image.packages,
            "remove": image.remove,
            "setup": image.setup is not None,
        }
        rendered = {
            "Containerfile": environment.get_template("Containerfile.j2").render(context),
            "install.sh": environment.get_template("install.sh.j2").render(context),
            "wheels": json.dumps([image.wheel_python, *image.wheels]),
        }
        if image.setup:
            rendered["setup.sh"] = image.setup.read_text(encoding="utf-8")
        # whatever else lies beside the definition is for setup.sh to use
        for path in sorted(image.directory.glob("*")) if image.directory else ():
            if path.is_file() and path.name != "setup.sh":
                rendered[path.name] = path.read_text(encoding="utf-8")
        return rendered


def tree_digest(root: Path) -> str:
    """Return a hash of the files below `root`: names, contents, execute bits, link targets."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            digest.update(f"link {name} {path.readlink()}\n".encode())
        elif path.is_file():
            executable = bool(path.stat().st_mode & 0o100)
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"file {name} {executable} {content}\n".encode())
    return digest.hexdigest()


def load_catalogue(directory: Path) -> Catalogue:
    """Read ``images.yml`` of `directory`.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    path = directory / "images.yml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "images-missing", f"cannot read the image definitions: {error.strerror}", where=str(path)
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError("images-yaml", f"not valid YAML: {error}", where=str(path)) from error
    return parse_catalogue(data, directory)


def parse_catalogue(data: Any, directory: Path) -> Catalogue:
    """Turn the content of ``images.yml`` into a catalogue.

    Raises:
        ConfigError: a key is unknown or of the wrong type, a parent is missing or its own descendant.
    """
    where = str(directory / "images.yml")

    def wrong(message: str) -> ConfigError:
        return ConfigError("images-invalid", message, where=where)

    if not isinstance(data, dict) or not isinstance(data.get("images"), dict):
        raise wrong("a mapping with the key `images` is needed")
    users = {name: User(name=name, **entry) for name, entry in data.get("users", {}).items()}
    group_ids: dict[str, int] = {name: entry["id"] for name, entry in data.get("groups", {}).items()}
    namespace = str(data.get("namespace", "cloudctl"))
    images: dict[str, Image] = {}
    for name, entry in data["images"].items():
        for key, value in entry.items():
            if key not in _KEYS:
                raise wrong(f"image {name}: unknown key {key!r}")
            if not isinstance(value, _KEYS[key]):
                raise wrong(f"image {name}: {key} has to be a {_KEYS[key].__name__}")
        if not entry.get("bootstrap") and entry.get("parent") not in data["images"]:
            raise wrong(f"image {name}: its parent {entry.get('parent')!r} is not defined")
        for user in entry.get("users", []):
            if user not in users:
                raise wrong(f"image {name}: user {user!r} is not defined")
        for group in entry.get("extra_groups", []):
            if group not in group_ids:
                raise wrong(f"image {name}: group {group!r} is not defined")
        env = {key: str(value) for key, value in entry.get("env", {}).items()}
        if "log" in entry:
            env["KOLLA_LOG_DIR"] = entry["log"]
        source = directory / name
        images[name] = Image(
            name=name,
            parent=entry.get("parent"),
            repository=entry.get("repository", f"{namespace}/{name}"),
            bootstrap=entry.get("bootstrap", False),
            publish=entry.get("publish", True),
            packages=tuple(sorted(entry.get("packages", []))),
            users=tuple(users[user] for user in entry.get("users", [])),
            extra_groups={group: group_ids[group] for group in entry.get("extra_groups", [])},
            memberships={user: tuple(names) for user, names in entry.get("groups", {}).items()},
            user=entry.get("user"),
            env=env,
            labels={key: str(value) for key, value in entry.get("labels", {}).items()},
            entrypoint=tuple(entry["entrypoint"]) if "entrypoint" in entry else None,
            cmd=tuple(entry["cmd"]) if "cmd" in entry else None,
            wheel_python=str(entry.get("wheels", {}).get("python", "")),
            wheels=tuple(entry.get("wheels", {}).get("packages", [])),
            remove=tuple(entry.get("remove", [])),
            tags=tuple(entry.get("tags", [])),
            directory=source if source.is_dir() else None,
        )
    for image in images.values():
        seen: set[str] = set()
        current = image
        while current.parent:
            if current.name in seen:
                raise wrong(f"image {image.name}: it is its own ancestor")
            seen.add(current.name)
            current = images[current.parent]
    return Catalogue(
        directory=directory,
        release=str(data.get("release", "")),
        namespace=namespace,
        suite=str(data.get("suite", "trixie")),
        components=tuple(data.get("components", ["main"])),
        images=images,
    )
