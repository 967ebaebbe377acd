#!/bin/sh
# Back the OpenStack databases up: the printed runbook's name for `cloudctl db backup --dump`.
# Leaves openstack_db_backup.YYYY_MM_DD.sql in the configured directory (default: /home/openstack_db_backup), and a
# verified backup in the setting backup.directory.
# usage: CLOUDCTL_SITE=SITE sh scripts/41_openstack_db_backup.sh
set -eu
echo "41_openstack_db_backup.sh is replaced by: cloudctl db backup --dump" >&2
# On the deploy node the command is on PATH; in a checkout it is in its environment.
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$PATH:$here/.venv/bin"
exec cloudctl db backup --dump "$@"
