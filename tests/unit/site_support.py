"""A valid site to spoil: the one that `cloudctl init --defaults` makes, with two services of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cloudctl.engine.definitions import load_services
from cloudctl.lab import nodes as lab_nodes
from cloudctl.lab import sitedir
from cloudctl.lab.topology import topology
from cloudctl.packages import repository
from cloudctl.site.create import QUESTIONS, create_site
from cloudctl.site.secrets import generate

SERVICES = {
    "alpha": """
name: alpha
settings:
  workers: {type: int, default: 2, min: 1, description: Workers.}
  motto: {type: str, default: hello, description: Motto.}
databases: [{name: alpha, user: alpha}, {name: alpha_extra, user: alpha}]
messaging: {user: alpha, vhost: alpha}
identity: {user: alpha}
ceph: {client: {name: alpha}}
secrets: {alpha_shared: {kind: fernet, description: Shared.}}
files:
  alpha.conf: {template: alpha.conf.j2, format: ini}
  alpha.json: {template: alpha.json.j2, format: json}
""",
    "beta": """
name: beta
files: {beta.yaml: {template: beta.yaml.j2, format: yaml}}
""",
}


PACKAGE_KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQGN\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"


def make_site(directory: Path) -> Path:
    """Make the documented site."""
    site = directory / "site"
    create_site(site, {question.key: question.parse(question.default) for question in QUESTIONS})
    for name, text in SERVICES.items():
        (site / "services" / name).mkdir(parents=True)
        (site / "services" / name / "service.yml").write_text(text)
    return site


def edit(site: Path, file: str, old: str, new: str) -> str:
    """Replace text that must be in a file once; return ``file:line`` of the first line that is new."""
    path = site / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))
    position = text.index(old)
    same = len(re.match(r"\s*", new).group()) if new else 0  # type: ignore[union-attr]
    return f"{file}:{text.count(chr(10), 0, position) + new.count(chr(10), 0, same) + 1}"


def lab_site(path: Path) -> Path:
    """Make the site of a small lab, with secrets and locked images, but no lab; return its directory."""
    path.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sitedir, "SITE", path)
        patch.setattr(lab_nodes, "STATE", path)
        patch.setattr(sitedir, "public_key", lambda: "ssh-ed25519 AAAA test")
        patch.setattr(repository, "public_key", lambda: PACKAGE_KEY)
        patch.setattr(lab_nodes, "host_key", lambda node: f"ssh-ed25519 {node.name}")
        sitedir.write(topology("small").values(), lambda line: None)
        images = {container.image for service in load_services() for container in service.containers}
        lock = {
            image: {"reference": f"10.10.10.2:5000/{image}@sha256:{'0' * 64}"} for image in images | {"ceph"}
        }
        (path / "images.lock.json").write_text(json.dumps(lock))
        generate(path)
    return path
