"""Machines that come and go: first contact, facts, joining a running cloud, leaving it."""
