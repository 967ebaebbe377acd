"""Lets tests import what modules import on a node: Ansible puts the product's own pieces beside its own."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "playbooks" / "module_utils"))
