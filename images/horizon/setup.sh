# Debian prepares both for www-data, but the service runs as kolla's user
chown -R horizon:horizon /var/lib/openstack-dashboard/secret-key /var/lib/openstack-dashboard/static
