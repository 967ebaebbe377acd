"""cloudctl: build, grow, run, shut down and restart a private cloud of containerised OpenStack and Ceph."""

__version__ = "0.1.0"
