"""What the reconciler would change in databases and in Keystone, and that it tells no secret."""

from __future__ import annotations

import copy
import email.message
import io
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import jinja2
import pytest

from cloudctl.cluster import reconcile
from cloudctl.paths import data_root

WANTED_DATABASES: dict[str, Any] = {
    "databases": [{"name": "nova"}, {"name": "nova_api"}],
    "accounts": [{"user": "nova", "password": "secret", "databases": ["nova", "nova_api"]}],
}


def databases(**changed: Any) -> dict[str, Any]:
    """Return a server that has everything, with parts replaced."""
    found = {
        "databases": ["nova", "nova_api", "mysql", "sys"],
        "accounts": {"nova": reconcile.database_password("secret"), "root": "*X"},
        "grants": {"nova": {"nova": True, "nova\\_api": True}},
    }
    return {**found, **changed}


def actions(changes: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """Return what a test compares."""
    return [(change["kind"], change["name"], change["action"]) for change in changes]


def test_password_is_stored_as_the_server_does() -> None:
    # SELECT PASSWORD('password')
    assert reconcile.database_password("password") == "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"


def test_databases_in_order_need_nothing() -> None:
    assert reconcile.diff_databases(WANTED_DATABASES, databases()) == ([], [])


def test_an_empty_server_gets_everything_in_order() -> None:
    changes, extras = reconcile.diff_databases(
        WANTED_DATABASES, {"databases": ["mysql"], "accounts": {}, "grants": {}}
    )
    assert actions(changes) == [
        ("database", "nova", "create"),
        ("database", "nova_api", "create"),
        ("database-account", "nova", "create"),
        ("database-grant", "nova on nova", "grant"),
        ("database-grant", "nova on nova_api", "grant"),
    ]
    assert extras == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"accounts": {"nova": "*OTHER"}}, ("database-account", "nova", "update")),
        ({"databases": ["nova"]}, ("database", "nova_api", "create")),
        ({"grants": {"nova": {"nova": True}}}, ("database-grant", "nova on nova_api", "grant")),
        # a wildcard grant reaches novaXapi too: it does not count
        (
            {"grants": {"nova": {"nova": True, "nova_api": True}}},
            ("database-grant", "nova on nova_api", "grant"),
        ),
        (
            {"grants": {"nova": {"nova": False, "nova\\_api": True}}},
            ("database-grant", "nova on nova", "grant"),
        ),
    ],
)
def test_one_difference_is_one_change(changed: dict[str, Any], expected: tuple[str, str, str]) -> None:
    changes, _ = reconcile.diff_databases(WANTED_DATABASES, databases(**changed))
    assert actions(changes) == [expected]


def test_what_nobody_asked_for_is_told_and_kept() -> None:
    found = databases(
        databases=["nova", "nova_api", "old"], accounts={**databases()["accounts"], "bob": "*X"}
    )
    changes, extras = reconcile.diff_databases(WANTED_DATABASES, found)
    assert changes == []
    assert extras == [{"kind": "database", "name": "old"}, {"kind": "database-account", "name": "bob"}]


def test_statements_carry_no_password() -> None:
    changes, _ = reconcile.diff_databases(WANTED_DATABASES, {"databases": [], "accounts": {}, "grants": {}})
    statements = [reconcile.database_statement(change, WANTED_DATABASES) for change in changes]
    assert "secret" not in repr(statements)
    assert statements[-1] == ("GRANT ALL PRIVILEGES ON `nova\\_api`.* TO %s@'%%'", ("nova",))


WANTED_IDENTITY: dict[str, Any] = {
    "projects": [{"name": "service", "description": "…"}],
    "roles": ["admin", "service"],
    "users": [{"name": "nova", "password": "secret", "project": "service", "roles": ["admin", "service"]}],
    "services": [{"name": "nova", "type": "compute", "description": "Compute"}],
    "endpoints": [
        {
            "service": "nova",
            "type": "compute",
            "interface": name,
            "region": "R",
            "url": f"https://{name}:8774",
        }
        for name in ("public", "internal")
    ],
}


def identity() -> dict[str, Any]:
    """Return a Keystone that has everything."""
    return {
        "roles": {"admin": "r1", "service": "r2", "member": "r3"},
        "projects": {"service": "p1"},
        "users": {
            "nova": {
                "id": "u1",
                "digest": reconcile.password_digest("nova", "secret"),
                "enabled": True,
                "refused": False,
            }
        },
        "assignments": {("nova", "admin", "service"), ("nova", "service", "service")},
        "services": {("compute", "nova"): "s1"},
        "endpoints": [
            {**entry, "id": f"e{n}", "enabled": True} for n, entry in enumerate(WANTED_IDENTITY["endpoints"])
        ],
    }


def test_identity_in_order_needs_nothing() -> None:
    assert reconcile.diff_identity(WANTED_IDENTITY, identity()) == ([], [])


def test_an_empty_keystone_gets_everything() -> None:
    empty = {"roles": {}, "projects": {}, "users": {}, "assignments": set(), "services": {}, "endpoints": []}
    changes, _ = reconcile.diff_identity(WANTED_IDENTITY, empty)
    assert [change["kind"] for change in changes] == [
        "role", "role", "project", "service", "user",
        "endpoint", "endpoint", "role-assignment", "role-assignment",
    ]  # fmt: skip
    assert "secret" not in json.dumps([change for change in changes if change["kind"] == "user"])


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ({"digest": "other"}, "another password is set"),
        ({"refused": True}, "the password is refused"),
        ({"enabled": False}, "is disabled"),
    ],
)
def test_a_user_that_could_not_log_in_is_updated(user: dict[str, Any], reason: str) -> None:
    found = identity()
    found["users"]["nova"].update(user)
    changes, _ = reconcile.diff_identity(WANTED_IDENTITY, found)
    assert changes == [reconcile.change("user", "nova", "update", reason)]


def test_a_moved_endpoint_says_from_where_to_where() -> None:
    found = identity()
    found["endpoints"][0]["url"] = "https://old:8774"
    changes, _ = reconcile.diff_identity(WANTED_IDENTITY, found)
    assert changes == [
        reconcile.change(
            "endpoint", "compute/nova public R", "update", "url: https://old:8774 -> https://public:8774"
        )
    ]


def test_a_second_endpoint_is_an_extra() -> None:
    found = identity()
    double = copy.deepcopy(found["endpoints"][0])
    found["endpoints"].append({**double, "id": "e9", "url": "https://other:1"})
    changes, extras = reconcile.diff_identity(WANTED_IDENTITY, found)
    assert changes == []
    assert extras == [{"kind": "endpoint", "name": "compute/nova public R https://other:1"}]


def test_a_lost_role_is_given_again() -> None:
    found = identity()
    found["assignments"].discard(("nova", "service", "service"))
    changes, _ = reconcile.diff_identity(WANTED_IDENTITY, found)
    assert actions(changes) == [("role-assignment", "nova: service in service", "grant")]


def test_an_unusable_input_is_not_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.json"
    path.write_text('{"databases": "hunter2"')
    assert reconcile.main(["--check", "--section", "databases", "--input", str(path)]) == 1
    assert "hunter2" not in capsys.readouterr().err


def test_the_container_gets_the_script_unchanged() -> None:
    template = data_root() / "services" / "toolbox" / "templates" / "cluster.py.j2"
    source = template.read_text()
    assert source == Path(reconcile.__file__).read_text()
    rendered = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(source)
    assert rendered.render() == source


class _Answer(io.BytesIO):
    headers: ClassVar[dict[str, str]] = {}


@pytest.mark.parametrize(("refusals", "token", "ends"), [(2, "t", "ok"), (99, "t", "403"), (1, "", "403")])
def test_what_a_starting_process_refuses_is_asked_again(
    refusals: int, token: str, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: Any, **_options: Any) -> Any:
        asked.append(request.full_url)
        if len(asked) <= refusals:
            raise urllib.error.HTTPError(request.full_url, 403, "Forbidden", email.message.Message(), None)
        return _Answer(b'{"users": []}')

    monkeypatch.setattr(reconcile, "FORBIDDEN_PAUSE", 0)
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    keystone = reconcile.Keystone({"auth_url": "https://api:5000/v3"})
    keystone.token = token
    try:
        assert keystone.get("/users") == {"users": []}
        ended = "ok"
    except urllib.error.HTTPError as error:
        ended = str(error.code)
    assert ended == ends
    assert len(asked) == (3 if ends == "ok" else 4 if token else 1)
