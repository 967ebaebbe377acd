"""The Debian packages that nodes install, and the repository that serves them."""
