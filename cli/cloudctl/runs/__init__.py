"""Runs: who did what, when and with which result; and the lock that lets one run at a time change a site."""
