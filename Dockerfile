# One image for every process of Perdure: the services, the ready agents and the `perdure` command.
# docker-compose.yml says which one a container is. For agents of your own: docs/how-to/deploy-with-compose.md.

FROM python:3.12.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /app
# The dependencies first: this layer is made anew only when the lock files change.
COPY requirements.lock requirements-dev.lock ./
RUN pip install --require-hashes -r requirements.lock
# The build tool alone, at the versions and hashes of the development lock.
RUN awk '/^[a-z]/ {keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} keep' requirements-dev.lock \
      > /tmp/build.lock \
 && python -m venv /build && /build/bin/pip install --require-hashes -r /tmp/build.lock
COPY . .
RUN /build/bin/python -m hatchling build -t wheel -d /tmp/wheel && pip install --no-deps /tmp/wheel/*.whl

FROM python:3.12.13-slim
# TLS to a model uses the system's trust store.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --home-dir /home/perdure perdure \
 && install --directory --owner perdure --group perdure /home/perdure/.perdure
COPY --from=build /venv /venv
WORKDIR /app
COPY --from=build /app/config_manager config_manager
COPY --from=build /app/services services
COPY --from=build /app/agents agents
COPY --from=build /app/deploy/healthcheck.py deploy/healthcheck.py
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PERDURE_HOME=/home/perdure/.perdure \
    PERDURE_LOG_FORMAT=json
# By number, so that Kubernetes can see that it is not root.
USER 10001
# SIGTERM drains; a container must be given at least PERDURE_DRAIN_TIMEOUT (20 s) for it.
STOPSIGNAL SIGTERM
CMD ["perdure", "--help"]
