#!/bin/sh
# Start the containers of all controllers: the printed runbook's name for `cloudctl service start all --group control`.
# Tier by tier, each when the one before is healthy; of the database the member that stopped last first. After an
# outage that nobody planned, `cloudctl galera recover` comes first. --dry-run shows what it would do.
# usage: CLOUDCTL_SITE=SITE sh scripts/start_docker_container.sh [--dry-run]
set -eu
echo "start_docker_container.sh is replaced by: cloudctl service start all --group control" >&2
echo "  (the whole start, with Ceph, the database and the instances: cloudctl cluster up)" >&2
# On the deploy node the command is on PATH; in a checkout it is in its environment.
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$PATH:$here/.venv/bin"
exec cloudctl service start all --group control --yes "$@"
