# Debian's wrapper changes to the service user and checks for it; the container starts as that user already
for program in rabbitmq-server rabbitmqctl rabbitmq-plugins rabbitmq-diagnostics rabbitmq-queues rabbitmq-upgrade rabbitmq-env; do
    real=$(ls -d /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/$program)
    ln -sf "$real" "/usr/local/bin/$program"
done
rm -f /var/lib/rabbitmq/.erlang.cookie
chown -R rabbitmq:rabbitmq /etc/rabbitmq /var/lib/rabbitmq
