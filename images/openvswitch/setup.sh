chmod 0755 /usr/local/bin/cloudctl_*
rm -f /etc/openvswitch/conf.db /etc/openvswitch/.conf.db.~lock~ /etc/openvswitch/system-id.conf
