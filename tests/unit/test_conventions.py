"""Rules that hold for the whole repository, and that nobody would notice being broken."""

from __future__ import annotations

import ast
import importlib
import ipaddress
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from site_support import lab_site

from cloudctl.engine.definitions import load_services
from cloudctl.engine.render import COMPOSE_PATH, render_site
from cloudctl.main import LOCAL_COMMANDS
from cloudctl.site.load import load_site
from cloudctl.site.names import KINDS, secret_names
from cloudctl.site.schema import site_definitions

ROOT = Path(__file__).resolve().parents[2]
VERBS = sorted(path.stem for path in (ROOT / "cli/cloudctl/commands").glob("[!_]*.py"))
SERVICES = sorted(service.name for service in load_services())

NAMED_OUTSIDE = {
    "cli/cloudctl/backup/restore.py": ("mariadb", "a dry run's words: the program that applies binary logs"),
    "cli/cloudctl/backup/server.py": ("mariadb", "the database server's programs, which back it up"),
    "cli/cloudctl/cluster/desired.py": ("mariadb", "the account with which databases are reconciled"),
    "cli/cloudctl/cluster/reconcile.py": (
        "haproxy keystone mariadb",
        "speaks the identity API; accounts of the database server itself are left alone",
    ),
    "cli/cloudctl/engine/network.py": ("openvswitch", "the kernel's kind of a device"),
    "cli/cloudctl/engine/render.py": ("memcached", "`memcached_servers`, for all templates"),
    "cli/cloudctl/galera/recovery.py": (
        "mariadb",
        "the container that is a member, and what asks its server",
    ),
    "cli/cloudctl/lab/sitedir.py": (" ".join(SERVICES), "the lab's site: settings that make services small"),
    "cli/cloudctl/power/decide.py": ("placement", "Ceph's placement groups"),
    "cli/cloudctl/power/down.py": ("placement", "Ceph's placement groups"),
    "cli/cloudctl/power/names.py": (
        "mariadb neutron nova rabbitmq",
        "what an ordered shutdown treats in its own way; the printed runbook's commands",
    ),
    "cli/cloudctl/commands/rabbitmq.py": ("rabbitmq", "the verb that mends the message bus"),
    "cli/cloudctl/node/instances.py": ("nova", "its program that ends migrations, beside its API"),
    "cli/cloudctl/node/providers.py": ("placement", "asks its API"),
    "cli/cloudctl/node_replace/ceph.py": ("placement", "a word of cephadm's specifications"),
    "cli/cloudctl/operations/rabbitmq.py": ("rabbitmq", "the message bus's programs and ports"),
    "cli/cloudctl/operations/clusters.py": (
        "haproxy keepalived ovn rabbitmq",
        "what stopping costs, by kind of cluster; what moves the virtual addresses",
    ),
    "cli/cloudctl/site/schema.yml": ("openvswitch", "a description: the kernel module of a datapath"),
    "cli/cloudctl/site/templates/overrides/README.md.j2": ("nova", "an example"),
    "cli/cloudctl/verify/tenant.py": ("nova placement", "words of the APIs: a service type, a log's name"),
    "playbooks/module_utils/cloudctl_net.py": ("openvswitch", "the kernel's kind of a device"),
    "playbooks/rabbitmq-reset.yml": ("rabbitmq", "runs the command of that name"),
    "playbooks/library/cloudctl_backup.py": ("mariadb", "programs inside the database's container"),
    "playbooks/library/cloudctl_galera.py": ("mariadb", "a file of the server's data directory"),
    "playbooks/library/cloudctl_ceph.py": ("placement", "a word of cephadm's specifications"),
    "playbooks/library/cloudctl_osdtrial.py": ("placement", "Ceph's placement groups"),
}
"""Files that name services outside of their directories: which, and why. New ones need a good reason."""

KNOWN_HOSTS = {"no-color.org"}


def tracked(*roots: str) -> list[Path]:
    """Return the repository's text files below these directories (all, when none is given)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *roots], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink() and _is_text(path)]


def _is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


# -- a verb is a command, a playbook, a page ----------------------------------------------------


def test_every_verb_is_a_command_of_its_name() -> None:
    for verb in VERBS:
        assert importlib.import_module(f"cloudctl.commands.{verb}").command.name in (verb, "command")


def test_every_verb_that_needs_nodes_has_a_playbook() -> None:
    # A verb with subcommands has one for each that works on nodes: cluster-down.yml, cluster-up.yml.
    playbooks = {path.stem for path in (ROOT / "playbooks").glob("*.yml")}
    assert {name.partition("-")[0] for name in playbooks} == set(VERBS) - LOCAL_COMMANDS
    for name in playbooks - set(VERBS):
        verb, _dash, subcommand = name.partition("-")
        command = importlib.import_module(f"cloudctl.commands.{verb}").command
        assert subcommand in command.commands, f"{name}.yml is no subcommand of {verb}"


def test_a_playbook_that_runs_the_command_says_for_whom() -> None:
    # Else every record of such a run would name the account of the deploy node.
    for path in (ROOT / "playbooks").glob("*.yml"):
        for play in yaml.safe_load(path.read_text()):
            if re.search(r"\[\W*cloudctl\b", json.dumps(play.get("tasks"))):
                assert "CLOUDCTL_CALLER" in play.get("environment", {}), path.name


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_page(verb: str) -> None:
    assert (ROOT / "docs/how-to" / f"{verb}.md").is_file()


# -- a service is named in its own directory ----------------------------------------------------


def names_in(path: Path) -> set[str]:
    """Return the services that a file names outside of comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    words = list(python_words(text)) if path.suffix == ".py" else [without_comments(text)]
    return {
        service
        for service in SERVICES
        if any(re.search(rf"(?<![a-z]){re.escape(service)}(?![a-z])", word) for word in words)
    }


def python_words(text: str) -> Iterator[str]:
    """Yield the identifiers and strings of a program, without its documentation."""
    tree = ast.parse(text)
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if names & {"DOCUMENTATION", "EXAMPLES", "RETURN"}:
                skipped.add(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value
        for attribute in ("id", "attr", "arg", "name"):
            if isinstance(value := getattr(node, attribute, None), str):
                yield value


def without_comments(text: str) -> str:
    """Return a configuration file or template without its comments."""
    return re.sub(r"(?m)(^|\s)#.*$", "", re.sub(r"(?s)\{#.*?#\}", "", text))


def test_a_service_is_named_in_its_own_directory_only() -> None:
    found = {
        str(path.relative_to(ROOT)): names_in(path)
        for path in tracked("cli", "playbooks", "roles", "group_vars", "inventory", "lab", "guest")
    }
    allowed = {path: set(names.split()) for path, (names, _) in NAMED_OUTSIDE.items()}
    new = {
        path: extra for path, names in found.items() if (extra := sorted(names - allowed.get(path, set())))
    }
    assert not new, f"iterate the definitions instead of naming services: {new}"
    unused = [path for path in NAMED_OUTSIDE if not found.get(path)]
    assert not unused, f"exceptions that nothing needs any more: {unused}"


def test_comments_and_docstrings_may_name_services() -> None:
    assert set(python_words('"""About nova."""\nx = "y"  # nova\n')) == {"x", "y"}
    assert "nova" not in without_comments("a: b  # nova\n{# nova\n #}# nova\n")


# -- modules document themselves ----------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(path.stem for path in (ROOT / "playbooks/library").glob("*.py")))
def test_every_module_is_documented(module: str) -> None:
    tree = ast.parse((ROOT / "playbooks/library" / f"{module}.py").read_text())
    texts = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert yaml.safe_load(str(texts["DOCUMENTATION"]))["module"] == module
    assert all(module in task for task in yaml.safe_load(str(texts["EXAMPLES"])))
    assert yaml.safe_load(str(texts["RETURN"]))


# -- no name of a registry or mirror ------------------------------------------------------------


def may_be_named(host: str) -> bool:
    """Return whether a host's name is an address, local, reserved for documentation, or known."""
    host = host.lower().strip(".")
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        pass
    last = host.rpartition(".")[2]
    documentation = re.search(r"(^|\.)example\.(com|net|org)$", host)
    return (
        "." not in host
        or last in ("example", "test", "invalid")
        or bool(documentation)
        or host in KNOWN_HOSTS
    )


def hosts_in(text: str) -> set[str]:
    """Return the host names of URLs, and of what looks like image references."""
    found = set(re.findall(r"https?://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)", text))
    found |= set(
        re.findall(r"(?<![\w./@-])([a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:io|com|net|dev|org))(?::\d+)?/\w", text)
    )
    return found


def test_no_host_of_a_registry_or_mirror_is_named() -> None:
    named = {
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        if path != Path(__file__)  # its examples below are made up
        for host in hosts_in(path.read_text(encoding="utf-8", errors="replace"))
        if not may_be_named(host)
    }
    assert not named


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("see https://a.b.example/x", {"a.b.example"}),
        ("FROM registry.somewhere.io/a/b:1", {"registry.somewhere.io"}),
        ("somewhere.io:5000/a", {"somewhere.io"}),
        ("packages: [docker.io, x]", set()),
        ("http://10.0.0.1:80/", {"10.0.0.1"}),
    ],
)
def test_hosts_are_found(text: str, hosts: set[str]) -> None:
    assert hosts_in(text) == hosts


# -- secrets are in private files only ----------------------------------------------------------


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, str]]:
    """The rendered site of a small lab, and its secrets."""
    path = lab_site(tmp_path_factory.mktemp("site"))
    site = load_site(path)
    return render_site(site), secret_values(path, site.secrets)


def secret_values(path: Path, secrets: Any) -> dict[str, str]:
    """Return what must stay private: certificates, public keys and the cluster's name need not."""
    public = {"ca_certificate", "tls_certificate", "ceph_fsid"}
    kinds = secret_names(site_definitions(path))
    return {
        name: value.strip()
        for name, value in secrets.items()
        if name not in public and not name.endswith("_public_key") and kinds[name].kind in KINDS
    }


def test_no_secret_is_in_a_compose_file_or_an_environment(
    rendered: tuple[dict[str, Any], dict[str, str]],
) -> None:
    site, secrets = rendered
    assert len(secrets) > 10
    for node, spec in site["nodes"].items():
        compose = next(entry["content"] for entry in spec["files"] if entry["path"] == COMPOSE_PATH)
        shown = {
            "compose file": compose,
            "jobs": json.dumps(spec["jobs"]),
            "sections": json.dumps(spec["sections"]),
            "units": json.dumps(spec["units"]),
        }
        for place, text in shown.items():
            assert not [name for name, value in secrets.items() if value in text], f"{place} of {node}"
        for name, container in json.loads(compose)["services"].items():
            suspicious = [
                key
                for key in container["environment"]
                if re.search(r"(?i)passw|secret|token|credential|private|_key$", key)
            ]
            assert not suspicious, f"environment of {name} on {node}"


def test_files_with_secrets_are_private(rendered: tuple[dict[str, Any], dict[str, str]]) -> None:
    site, secrets = rendered
    seen = set()
    for node, spec in site["nodes"].items():
        for entry in spec["files"]:
            held = {name for name, value in secrets.items() if value in entry["content"]}
            seen |= held
            assert not held or entry["mode"] == "0600", f"{entry['path']} on {node} shows {sorted(held)}"
    assert len(seen) > 10, "the test looks for values that are nowhere"
