chmod 0755 /usr/local/bin/cloudctl_registry
