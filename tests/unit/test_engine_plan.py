"""The plan: which node does what, and why."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudctl.engine import plan

ROOT = Path(__file__).resolve().parents[2]


def _module() -> Any:
    spec = importlib.util.spec_from_file_location(
        "cloudctl_node", ROOT / "playbooks/library/cloudctl_node.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cloudctl_node"] = module
    spec.loader.exec_module(module)
    return module


node_module = _module()


def job(name: str, **values: Any) -> dict[str, Any]:
    return {
        "id": name, "name": name, "service": "web", "phase": "control", "at": "before", "first": "ctl01",
        "once": False, "everywhere": False, "inputs": {"image": "a"}, "reasons": [], "ran": False, **values,
    }  # fmt: skip


def observed(**values: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "packages": [], "files": [], "units": [], "containers": [], "jobs": [], "markers": [], "sections": [],
        "unhealthy": [],
    }  # fmt: skip
    return {**empty, **values}


SPECS: dict[str, dict[str, Any]] = {name: {"jobs": [job("sync")]} for name in ("ctl01", "ctl02", "ctl03")}


def test_a_job_runs_on_the_first_node_only() -> None:
    due = plan.due_jobs(SPECS, {name: observed(jobs=[job("sync")]) for name in SPECS})
    assert {name: [j["id"] for j in jobs] for name, jobs in due.items()} == {
        "ctl01": ["sync"],
        "ctl02": [],
        "ctl03": [],
    }


def test_a_job_that_another_node_has_done_is_not_due() -> None:
    state = {
        "ctl01": observed(jobs=[job("sync")]),
        "ctl02": observed(),
        "ctl03": observed(jobs=[job("sync")]),
    }
    assert not any(plan.due_jobs(SPECS, state).values())


def test_a_once_job_is_never_repeated_even_with_other_inputs() -> None:
    once = job("sync", once=True)
    specs = {name: {"jobs": [once]} for name in SPECS}
    state = {name: observed(jobs=[once]) for name in SPECS}
    assert plan.due_jobs(specs, state)["ctl01"]
    state["ctl03"] = observed(jobs=[once], markers=["sync"])
    assert not any(plan.due_jobs(specs, state).values())


def test_nothing_observed_is_nothing_planned() -> None:
    made = plan.build(SPECS, {name: observed() for name in SPECS})
    assert not made["changes"] and made["scope"] == [] and plan.summary(made) == "nothing to change"


def test_each_change_lands_in_its_step() -> None:
    changes = [
        {"name": "api", "service": "web", "phase": "control", "action": "recreate", "reasons": []},
        {"name": "new", "service": "web", "phase": "control", "action": "create", "reasons": []},
        {"name": "agent", "service": "web", "phase": "compute", "action": "reload", "reasons": []},
        {"name": "gone", "service": "", "phase": "", "action": "remove", "reasons": []},
    ]
    sections = [
        {
            "section": "databases",
            "after": "infrastructure",
            "action": "create",
            "kind": "database",
            "name": "x",
        }
    ]
    state = {**{name: observed() for name in SPECS}, "ctl02": observed(containers=changes, sections=sections)}
    made = plan.build(SPECS, state, [{"kind": "pool", "name": "p", "action": "create"}], "ctl01")
    scope = {entry["name"]: entry["todo"] for entry in made["scope"]}
    assert scope == {
        "ctl02": {
            "control_roll": ["api"],
            "control_create": ["new"],
            "compute_roll": ["agent"],
            "compute_create": ["gone"],
            "infrastructure_sections": ["databases"],
        },
        "ctl01": {"ceph": ["all"]},
    }


def test_a_plan_limited_to_a_service_leaves_the_others_alone() -> None:
    changes = [
        {"name": "api", "service": "web", "phase": "control", "action": "recreate", "reasons": []},
        {"name": "db", "service": "data", "phase": "infrastructure", "action": "recreate", "reasons": []},
    ]
    files = [
        {"path": "/etc/kolla/api/a.conf", "action": "change", "area": "config", "container": "api"},
        {"path": "/etc/kolla/db/b.conf", "action": "change", "area": "config", "container": "db"},
        {"path": "/etc/hosts", "action": "change", "area": "base", "container": ""},
    ]
    state = {**{name: observed() for name in SPECS}, "ctl01": observed(containers=changes, files=files)}
    limited = plan.select(plan.build(SPECS, state), services=["web"])
    assert [c["name"] for c in limited["nodes"]["ctl01"]["containers"]] == ["api"]
    assert [c["path"] for c in limited["nodes"]["ctl01"]["files"]] == ["/etc/kolla/api/a.conf"]
    assert not plan.select(plan.build(SPECS, state), nodes=["ctl02"])["changes"]


def enabling() -> dict[str, Any]:
    """A cloud in which the service web was just switched on, and something of another one has changed."""

    def container(name: str, service: str, action: str, phase: str = "control") -> dict[str, Any]:
        return {"name": name, "service": service, "phase": phase, "action": action, "reasons": []}

    def cluster(section: str, kind: str, name: str, *services: str) -> dict[str, Any]:
        return {
            "section": section, "after": "infrastructure", "kind": kind, "name": name, "action": "create",
            "reason": "", "for": list(services),
        }  # fmt: skip

    names = ("balancer", "broker", "tools")
    files = [{"path": f"/etc/kolla/{name}/x", "action": "change", "area": "config", "container": name}
             for name in (*names, "other")]  # fmt: skip
    spec = {
        "jobs": [job("sync")],
        "containers": {"balancer": {"serves": ["frontends"]}, "broker": {"serves": ["messaging"]}},
        "sections": [{"name": "databases", "container": "tools"}],
    }
    found = observed(
        files=files,
        containers=[
            container("balancer", "lb", "reload", "infrastructure"),
            container("broker", "bus", "reload", "infrastructure"),
            container("other", "other", "reload"),
            container("api", "web", "create"),
        ],
        sections=[
            cluster("databases", "database", "web", "web"),
            cluster("databases", "database", "other", "other"),
        ],
    )
    return plan.build({"ctl01": spec}, {"ctl01": found}, [{"kind": "pool", "name": "web"}], "ctl01")


NEEDS = {"web": ["frontends", "pool web"], "bare": []}


def test_a_new_service_takes_along_what_it_needs_and_nothing_else() -> None:
    limited = plan.select(enabling(), services=["web"], needs=NEEDS)
    changes = limited["nodes"]["ctl01"]
    assert [c["name"] for c in changes["containers"]] == ["balancer", "api"]
    assert [c["name"] for c in changes["cluster"]] == ["web"]
    # what reconciles databases works from its files, which know the service
    assert [c["container"] for c in changes["files"]] == ["balancer", "tools"]
    (entry,) = limited["scope"]
    assert entry["todo"]["infrastructure_sections"] == ["databases:web"]
    assert entry["todo"]["infrastructure_roll"] == ["balancer"]
    assert entry["todo"]["ceph"] == ["all"] and limited["totals"]["ceph"] == 1
    assert limited["notes"] == []


def test_without_a_selection_sections_have_no_limit() -> None:
    (entry,) = enabling()["scope"]
    assert entry["todo"]["infrastructure_sections"] == ["databases"]


def test_a_service_that_is_there_leaves_the_others_alone() -> None:
    made = enabling()
    changes = made["nodes"]["ctl01"]
    changes["containers"][-1]["action"] = "recreate"
    changes["cluster"] = changes["cluster"][1:]
    limited = plan.select(made, services=["web"], needs=NEEDS)["nodes"]["ctl01"]
    assert [c["name"] for c in limited["containers"]] == ["api"]


def test_what_cannot_be_taken_along_is_said() -> None:
    made = enabling()
    made["nodes"]["ctl01"]["containers"][0]["action"] = "recreate"
    made["ceph"].append({"kind": "osd", "name": "osd01:/dev/sdb"})
    limited = plan.select(made, services=["web"], needs=NEEDS)
    assert [c["name"] for c in limited["nodes"]["ctl01"]["containers"]] == ["api"]
    assert not limited["ceph"] and "ceph" not in limited["scope"][0]["todo"]
    first, second = plan.describe(limited)[-2:]
    assert "pool web" in first and "balancer" in second


def wanted(**parts: str) -> dict[str, Any]:
    return {"service": "web", "phase": "control", "parts": parts, "reload": {}}


def found(state: str = "running", **parts: str) -> dict[str, Any]:
    return {"id": "1", "state": state, "status": "Up", "parts": parts}


def test_a_container_says_why_it_is_recreated() -> None:
    changes = node_module.compare_containers(
        {"api": wanted(image="2", env="x")}, {"api": found(image="1", env="x")}, {}
    )
    assert changes[0]["action"] == "recreate"
    assert changes[0]["reasons"] == [{"attribute": "image", "from": "1", "to": "2"}]


@pytest.mark.parametrize(
    ("current", "action"),
    [
        ({}, "create"),
        ({"api": found("exited", image="1")}, "start"),
        ({"api": found("running", image="1")}, None),
    ],
)
def test_missing_stopped_and_right_containers(current: dict[str, Any], action: str | None) -> None:
    changes = node_module.compare_containers({"api": wanted(image="1")}, current, {})
    assert [change["action"] for change in changes] == ([action] if action else [])


def test_a_container_that_nobody_wants_is_removed() -> None:
    assert node_module.compare_containers({}, {"old": found(image="1")}, {})[0]["action"] == "remove"


def test_a_reloadable_file_reloads_instead_of_recreating() -> None:
    state = {**wanted(image="1"), "reload": {"files": {"a.cfg": "new"}, "command": "true"}}
    changes = node_module.compare_containers(
        {"lb": state}, {"lb": found(image="1")}, {"lb": {"a.cfg": "old"}}
    )
    assert changes[0]["action"] == "reload"
    assert changes[0]["reasons"] == [{"attribute": "file:a.cfg", "from": "old", "to": "new"}]
    assert not node_module.compare_containers(
        {"lb": state}, {"lb": found(image="1")}, {"lb": {"a.cfg": "new"}}
    )


def test_files_are_compared_by_content_and_mode(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("a\n")
    kept.chmod(0o600)
    (tmp_path / "stray").write_text("x")
    entry = {"path": str(kept), "content": "b\n", "mode": "0600", "area": "config", "container": "c"}
    changes = node_module.compare_files([entry], [str(tmp_path)])
    assert [(change["action"], Path(change["path"]).name) for change in changes] == [
        ("change", "kept"),
        ("remove", "stray"),
    ]
    assert changes[0]["diff"] == ["@@ -1 +1 @@", "-a", "+b"]
