"""Building the container images and the guest disk image, and keeping them in a registry."""
