"""An operator's site: the directory that describes one cloud, read, checked and made."""

from cloudctl.site.load import load_site
from cloudctl.site.model import Interface, Network, Node, Secrets, Settings, Site

__all__ = ["Interface", "Network", "Node", "Secrets", "Settings", "Site", "load_site"]
