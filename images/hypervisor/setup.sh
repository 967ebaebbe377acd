chmod 0755 /usr/local/bin/cloudctl_*
rm -f /etc/ssh/ssh_host_*
rm -f /etc/libvirt/qemu/networks/autostart/default.xml
# the account must be usable by key, which a locked password field ("!") forbids
usermod --password '*' nova
install -d -o nova -g nova /var/lib/nova/instances
