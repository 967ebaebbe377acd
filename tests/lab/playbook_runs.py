"""How each playbook is tried by itself on a healthy cloud: its variables, how it ends, what it says.

Data only: a unit test holds it against the directory, so that no playbook comes without an entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """One call of ansible-playbook.

    Attributes:
        says: what its output must contain, besides a recap without failures.
        variables: for ``-e``.
        rc: its exit code.
        needs: ``backup``: a backup of the databases must be there.
    """

    says: tuple[str, ...]
    variables: Mapping[str, Any] = field(default_factory=dict)
    rc: int = 0
    needs: str = ""

    @property
    def options(self) -> list[str]:
        """The variables as options of the command line; strings stay strings."""
        return ["-e", json.dumps(dict(self.variables))] if self.variables else []


RUNS: Mapping[str, tuple[Run, ...]] = {
    "ceph-flags": (
        Run(says=('"unset"', "noout")),
        Run(says=('"changed"', "noout"), variables={"do": "set", "flags": ["noout"], "dry_run": True}),
    ),
    "check": (Run(says=('"healthy": true',)),),
    "cluster-down": (Run(says=('"name"',), variables={"dry_run": True}),),
    "cluster-up": (Run(says=('"name"',), variables={"dry_run": True}),),
    # it has no dry run: one backup more changes nothing in the cloud
    "db-backup": (Run(says=('"id"',)),),
    "db-forget-replaced": (Run(says=('"removed"',), variables={"dry_run": True}),),
    "db-prune": (Run(says=('"backups"',), variables={"dry_run": True}, needs="backup"),),
    "db-restore": (Run(says=('"name"',), variables={"dry_run": True}, needs="backup"),),
    "db-verify": (Run(says=('"id"',), needs="backup"),),
    "deploy": (Run(says=("nothing to change",)),),
    # refuses on a healthy cluster, which is what it finds here
    "galera-recover": (Run(says=("healthy",), variables={"dry_run": True}),),
    "network": (Run(says=('"healthy": true',)),),
    "node-add": (Run(says=("node-in-use",), variables={"names": ["compute01"], "dry_run": True}, rc=2),),
    # a name that is taken: it gets as far as to refuse it
    "node-enroll": (
        Run(
            says=("node-exists",),
            variables={"node_name": "ctl01", "address": "10.10.10.99", "node_role": "compute"},
            rc=2,
        ),
    ),
    "node-remove": (Run(says=('"steps"',), variables={"node_name": "compute02", "dry_run": True}),),
    # refuses a controller that is alive
    "node-replace": (Run(says=("node-alive",), variables={"node_name": "ctl02", "dry_run": True}, rc=2),),
    "node-inspect": (Run(says=('"nodes"',), variables={"names": ["compute01"]}),),
    "node-list": (Run(says=("compute01",)),),
    "node-show": (Run(says=("compute01",), variables={"node_name": "compute01"}),),
    "openstack": (Run(says=("keystone",)),),
    "osd-add": (Run(says=('"changed"',), variables={"node": "osd01", "dry_run": True}),),
    # with three storage nodes none of them can do without its OSD
    "osd-remove": (Run(says=("osd-failure-domain",), variables={"ids": [0], "dry_run": True}, rc=2),),
    # the device that it has is in use: it gets as far as to refuse it
    "osd-replace": (Run(says=("osd-",), variables={"id": 0, "dry_run": True}, rc=2),),
    "plan": (Run(says=("nothing to change",)),),
    # refuses a bus that is whole
    "rabbitmq-reset": (Run(says=("rabbitmq-healthy",), variables={"dry_run": True}, rc=2),),
    "schedule-db-backup": (Run(says=('"timer"',), variables={"daily": "02:30", "dry_run": True}),),
    "schedule-remove": (Run(says=("the timer",), variables={"schedule": "db-backup", "dry_run": True}),),
    "service-restart": (Run(says=("memcached",), variables={"service": "memcached", "dry_run": True}),),
    "service-start": (Run(says=("memcached",), variables={"service": "memcached", "dry_run": True}),),
    "service-stop": (Run(says=("memcached",), variables={"service": "memcached", "dry_run": True}),),
    "status": (Run(says=("Up ", "memcached")),),
    "verify": (Run(says=('"seconds"',)),),
}
"""By playbook."""
