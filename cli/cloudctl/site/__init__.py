"""An operator's site: the directory that describes one cloud, read, checked and made."""
