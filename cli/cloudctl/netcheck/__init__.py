"""Whether all nodes reach each other on every network, at the network's full MTU."""
