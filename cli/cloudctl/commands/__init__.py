"""One module per command; ``main`` finds them by name and takes their ``command``."""
