#!/bin/sh
# What the published image does with its variables, as far as docker-compose.yml uses them.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth-host scram-sha-256 --auth-local trust \
        > /dev/null
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl --wait --options "-c listen_addresses='' -c unix_socket_directories=/tmp" start > /dev/null
    createdb --host /tmp --username "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait stop > /dev/null
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
