"""The shared state that follows from service definitions."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from site_support import lab_site

from cloudctl.cluster import desired, reconcile
from cloudctl.engine.definitions import load_services
from cloudctl.errors import ConfigError
from cloudctl.site.load import load_site
from cloudctl.site.model import Secrets, Settings, Site


class AnySecret(Secrets):
    """Has every secret."""

    def __getitem__(self, name: str) -> str:
        return f"value of {name}"


SERVICES: list[dict[str, Any]] = [
    {
        "name": "keystone",
        "databases": [{"name": "keystone", "user": "keystone"}],
        "frontends": [{"name": "keystone", "port": 5000}],
        "identity": {
            "services": [{"name": "keystone", "type": "identity", "path": "", "frontend": "keystone"}]
        },
    },
    {
        "name": "nova",
        "databases": [{"name": "nova_api", "user": "nova"}, {"name": "nova"}],
        "frontends": [{"name": "nova-api", "port": 8774, "public_port": 443}],
        "identity": {
            "user": "nova",
            "roles": ["service", "admin"],
            "services": [{"name": "nova", "type": "compute", "path": "/v2.1", "frontend": "nova-api"}],
        },
    },
]


@pytest.fixture
def site() -> Site:
    """Return a site with two virtual addresses."""
    settings = {
        "vip": {"internal": "10.0.0.250", "external": "192.0.2.250"},
        "cloud": {"region": "RegionOne"},
    }
    return Site(Path("/nowhere"), "test", {}, {}, Settings(settings), AnySecret(), {})


def test_databases_by_account(site: Site) -> None:
    found = desired.build(site, SERVICES)["databases"]
    assert [entry["name"] for entry in found["databases"]] == ["keystone", "nova", "nova_api"]
    assert found["accounts"][1] == {
        "user": "nova",
        "password": "value of nova_database_password",
        "databases": ["nova", "nova_api"],
    }


def test_endpoints_stand_on_the_virtual_addresses(site: Site) -> None:
    found = desired.build(site, SERVICES)["identity"]
    assert {item["interface"]: item["url"] for item in found["endpoints"] if item["service"] == "nova"} == {
        "admin": "https://10.0.0.250:8774/v2.1",
        "internal": "https://10.0.0.250:8774/v2.1",
        "public": "https://192.0.2.250:443/v2.1",
    }
    assert found["connection"]["auth_url"] == "https://10.0.0.250:5000/v3"
    assert found["roles"] == ["admin", "service"]


def test_the_order_of_definitions_does_not_matter(site: Site) -> None:
    assert desired.build(site, SERVICES) == desired.build(site, SERVICES[::-1])


def test_an_unknown_frontend_is_named(site: Site) -> None:
    broken = [{**SERVICES[1], "frontends": []}]
    with pytest.raises(ConfigError, match="nova-api"):
        desired.build(site, broken)


def test_two_owners_of_a_database_are_refused(site: Site) -> None:
    other = {"name": "other", "databases": [{"name": "nova", "user": "other"}]}
    with pytest.raises(ConfigError, match="nova"):
        desired.build(site, [*SERVICES, other])


def test_password_hash_is_that_of_the_broker() -> None:
    value = desired.password_hash("secret", "rabbitmq:nova")
    raw = base64.b64decode(value)
    assert len(raw) == 36
    assert raw[4:] == hashlib.sha256(raw[:4] + b"secret").digest()
    assert (
        value
        == desired.password_hash("secret", "rabbitmq:nova")
        != desired.password_hash("secret", "rabbitmq:x")
    )


def test_everything_wanted_has_an_owner(tmp_path: Path) -> None:
    # A plan for one service is made with this; an entry without an owner would never be taken along.
    path = lab_site(tmp_path)
    wanted = desired.build(load_site(path), [service.raw for service in load_services()])
    databases: dict[str, Any] = {"databases": [], "accounts": {}, "grants": {}}
    keystone: dict[str, Any] = {
        "roles": {}, "projects": {}, "users": {}, "assignments": set(), "services": {}, "endpoints": [],
    }  # fmt: skip
    changes = {
        "databases": reconcile.diff_databases(wanted["databases"], databases)[0],
        "identity": reconcile.diff_identity(wanted["identity"], keystone)[0],
    }
    for section, found in changes.items():
        tagged = reconcile.needed(found, wanted[section], [])
        assert len(tagged) == len(found) and all(entry["for"] for entry in tagged)

    def of(section: str, *services: str) -> list[str]:
        found = reconcile.needed(changes[section], wanted[section], services)
        return [f"{entry['kind']} {entry['name']}" for entry in found]

    assert of("databases", "glance") == [
        "database glance", "database-account glance", "database-grant glance on glance",
    ]  # fmt: skip
    registered = of("identity", "glance")
    assert {"user glance", "service image/glance", "role admin", "project service"} <= set(registered)
    assert len([text for text in registered if text.startswith("endpoint image/glance")]) == 3
    assert not [text for text in registered if "nova" in text]
    assert of("databases", "memcached") == of("identity", "memcached") == []
