#!/bin/sh
# What the image starts with: the variables of /run/perdure/env, where a part finds its servers and as whom
# (deploy/credentials.py writes it for docker-compose.yml), and then the command. Without that file, the command alone.
if [ -f /run/perdure/env ]; then
    set -a
    . /run/perdure/env
    set +a
fi
exec "$@"
