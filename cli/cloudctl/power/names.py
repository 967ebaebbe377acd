"""The few containers and settings that switching a cloud off and on has to know by name."""

from __future__ import annotations

from cloudctl.operations.rabbitmq import start_majority

DATABASE = "mariadb"
"""Its members are stopped one at a time, and recovered instead of started."""
BUS = "rabbitmq"
"""Probe and container of the message bus; started where the database runs, checked for partitions."""
HYPERVISOR = "nova_libvirt"
"""Knows which guests run on a compute node, and how each of them ended."""
CHECK_COMMANDS = (
    "nova service-list (openstack compute service list)",
    "neutron agent-list (openstack network agent list)",
)
"""What the printed runbook types to see whether services and agents report."""
start_bus = start_majority
"""Starts the message bus where not all of its members are there."""
