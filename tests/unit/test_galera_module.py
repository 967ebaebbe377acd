"""The node's side of a recovery: what is told of a member that fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "playbooks" / "library" / "cloudctl_galera.py"


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cloudctl_galera_module", PATH)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_a_member_that_fails_is_told_with_the_errors_of_its_own_log(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "database").mkdir()
    log = tmp_path / "database" / "database.log"
    log.write_text("[Note] all is well\ntouch: cannot touch 'x': Permission denied\n0 [ERROR] WSREP: no\n")
    really = module.run

    def run(argv: list[str], **options: Any) -> Any:
        if argv[:3] == ["docker", "volume", "inspect"]:
            assert argv[-1] == "logs"
            return 0, f"{tmp_path}\n", ""
        return (0, "last words\n", "") if argv[0] == "docker" else really(argv, **options)

    monkeypatch.setattr(module, "run", run)
    params = {"container": "database", "volumes": ["data:/var/lib/mysql", "logs:/var/log/kolla"]}
    assert module.Member(params).tail().splitlines() == [
        "touch: cannot touch 'x': Permission denied",
        "0 [ERROR] WSREP: no",
        "last words",
    ]
    log.unlink()
    assert module.Member(params).tail() == "last words"
    assert module.Member({**params, "volumes": []}).tail() == "last words"
