"""Pre-checks: what could keep a deploy from working, found on all nodes before anything is changed."""
