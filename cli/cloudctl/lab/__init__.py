"""The lab: a whole cloud's servers as podman containers on one machine.

Nothing outside this package and ``commands/lab.py`` knows that it runs in the lab.
"""
