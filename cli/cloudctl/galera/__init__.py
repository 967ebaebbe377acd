"""The database cluster after an outage: where its members' data stands, which one starts it, and doing it."""

from cloudctl.galera.decide import Decision, decide
from cloudctl.galera.members import Member, is_healthy
from cloudctl.galera.recovery import Recovery, read_members, recover

__all__ = ["Decision", "Member", "Recovery", "decide", "is_healthy", "read_members", "recover"]
