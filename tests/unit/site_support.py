"""A valid site to spoil: the one that `cloudctl init --defaults` makes, with two services of its own."""

from __future__ import annotations

import re
from pathlib import Path

from cloudctl.site.create import QUESTIONS, create_site

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
