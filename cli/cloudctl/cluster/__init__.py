"""Cluster-wide state: databases and accounts, and what Keystone registers.

``desired`` derives it from the service definitions; ``reconcile`` is the script that runs in a container
of the cloud, compares it with what is there and changes the difference.
"""
