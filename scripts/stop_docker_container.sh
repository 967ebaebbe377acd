#!/bin/sh
# Stop the containers of all controllers: the printed runbook's name for `cloudctl service stop all --group control`.
# On all controllers at the same time, tier by tier, the database one member at a time. They stay stopped over a
# restart of their nodes. Asks nothing, as it always did; --dry-run shows what it would do, and what that costs.
# usage: CLOUDCTL_SITE=SITE sh scripts/stop_docker_container.sh [--dry-run]
set -eu
echo "stop_docker_container.sh is replaced by: cloudctl service stop all --group control" >&2
echo "  (the whole shutdown, in good order and with a verified backup first: cloudctl cluster down)" >&2
# On the deploy node the command is on PATH; in a checkout it is in its environment.
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$PATH:$here/.venv/bin"
exec cloudctl service stop all --group control --yes "$@"
