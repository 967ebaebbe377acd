#!/usr/bin/python
"""Write down on a node that one-shot jobs were done: by the machine in whose place it comes.

Runs on the node with the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: cloudctl_adopt
short_description: Write down that one-shot jobs were done already
description:
  - The record of a one-shot job lies on the node that ran it. A machine that replaces this node knows nothing
    of it, so that a job which is for the whole cloud - making the first data of the database is one - would
    look as if nobody had done it.
  - A job that is recorded with the same inputs stays as it is.
options:
  jobs:
    description: Each with C(id) and C(inputs), as rendered by cloudctl.
    type: list
    elements: dict
    required: true
author: cloudctl
"""

EXAMPLES = r"""
- name: This machine comes in the place of the one that made the database
  cloudctl_adopt:
    jobs:
      - {id: cloudctl-job-database-bootstrap, inputs: {command: 0123456789abcdef}}
"""

RETURN = r"""
adopted:
  description: Ids of the jobs that were not recorded so before.
  returned: always
  type: list
  elements: str
"""

RECORD = "/var/lib/cloudctl/jobs.json"
"""The record of the module C(cloudctl_node)."""


def merge(record, jobs, when):
    """Return the record with the jobs in it, and the ids of those that are new. Pure."""
    result, new = dict(record), []
    for job in jobs:
        if (result.get(job["id"]) or {}).get("inputs") != job["inputs"]:
            result[job["id"]] = {"inputs": job["inputs"], "when": when, "adopted": True}
            new.append(job["id"])
    return result, new


def read(path):
    """Return the record; an absent or damaged one is empty."""
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path, record):
    """Write the record, whole or not at all."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.cloudctl-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def main():
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"jobs": {"type": "list", "elements": "dict", "required": True}},
        supports_check_mode=True,
    )
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record, new = merge(read(RECORD), module.params["jobs"], when)
    if new and not module.check_mode:
        write(RECORD, record)
    module.exit_json(changed=bool(new), adopted=new)


if __name__ == "__main__":
    main()
