"""The cloud tried end to end, as a tenant would use it."""
