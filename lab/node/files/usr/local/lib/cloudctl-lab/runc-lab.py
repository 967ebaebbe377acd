"""Lower the resource limits of an OCI bundle or process file to this node's own, then run runc."""

import json
import os
import resource
import sys


def clamp(path: str) -> None:
    """Rewrite the file where a limit is above what this process may set."""
    with open(path, encoding="utf-8") as handle:
        spec = json.load(handle)
    limits = spec.get("process", spec).get("rlimits") or []
    changed = False
    for limit in limits:
        kind = getattr(resource, limit["type"], None)
        if kind is None:
            continue
        top = resource.getrlimit(kind)[1]
        if top == resource.RLIM_INFINITY:
            continue
        for key in ("hard", "soft"):
            if limit[key] > top:
                limit[key] = top
                changed = True
    if changed:
        with open(path, "w", encoding="utf-8") as handle:
            json.dump(spec, handle)


def main() -> None:
    before = ""
    for word in sys.argv[1:]:
        name, _, value = word.partition("=")
        target = ""
        if before in ("--bundle", "-b"):
            target = os.path.join(word, "config.json")
        elif before in ("--process", "-p"):
            target = word
        elif name == "--bundle" and value:
            target = os.path.join(value, "config.json")
        elif name == "--process" and value:
            target = value
        if target and os.path.isfile(target):
            clamp(target)
        before = word
    os.execv("/usr/sbin/runc", ["runc", *sys.argv[1:]])


main()
