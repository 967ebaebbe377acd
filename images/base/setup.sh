# Service packages must neither start anything nor fail because there is no init.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d
dpkg-divert --local --rename --add /usr/bin/deb-systemd-invoke
ln -s /bin/true /usr/bin/deb-systemd-invoke
chmod 0755 /usr/local/bin/kolla_*
chmod 0440 /etc/sudoers.d/kolla
install -d -o root -g kolla -m 2775 /var/log/kolla
install -d -m 0755 /var/lib/kolla/config_files
# adduser --system in a package's script refuses a user that is there already with an id outside its range
cat >>/etc/adduser.conf <<CONF
LAST_SYSTEM_UID=42999
LAST_SYSTEM_GID=42999
CONF
