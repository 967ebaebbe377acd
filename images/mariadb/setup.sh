chmod 0755 /usr/local/bin/cloudctl_*
# the configuration comes whole from the deployment
rm -rf /etc/mysql/mariadb.conf.d /etc/mysql/conf.d /etc/mysql/debian.cnf /etc/mysql/debian-start
install -d /etc/mysql/mariadb.conf.d /etc/mysql/conf.d
printf '[client-server]\nsocket = /run/mysqld/mysqld.sock\n!includedir /etc/mysql/conf.d/\n!includedir /etc/mysql/mariadb.conf.d/\n' >/etc/mysql/mariadb.cnf
install -d -o mysql -g mysql -m 0755 /run/mysqld
rm -rf /var/lib/mysql
install -d -o mysql -g mysql -m 0750 /var/lib/mysql
