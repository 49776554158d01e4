# The first stage builds the environment; sources and build tools do not get into the image.
FROM docker.io/library/python:3.11-slim AS build
COPY . /src
# The environment has no pip, as nothing is installed into it later. Modules are compiled here, as
# the daemon cannot write to it. All downloads are wheels whose hash is in a lock file, so that no
# build tool is downloaded without a hash; "make lock" writes both lock files.
RUN python -m venv --without-pip /opt/smtpd-fork \
 && environment=/opt/smtpd-fork/bin/python \
 && locked='--no-cache-dir --require-hashes --only-binary :all: --no-deps' \
 && python -m pip install $locked --target /build -r /src/packaging/build.lock \
 && python -m pip --python $environment install $locked --compile -r /src/packaging/image.lock \
 && PYTHONPATH=/build python -m pip --python $environment install --no-cache-dir --compile \
      --no-index --no-deps --no-build-isolation /src

FROM docker.io/library/python:3.11-slim
# Values of the labels. VERSION is that of smtpd_fork/version.py; a test compares them.
ARG VERSION=0.2.0
ARG REVISION=
ARG CREATED=
LABEL org.opencontainers.image.title="smtpd-fork" \
      org.opencontainers.image.description="An SMTP server in one asyncio process: limits connections in total, per client and per network, and passes sessions to handlers written for aiosmtpd." \
      org.opencontainers.image.vendor="The smtpd-fork developers" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.url="https://example.org/smtpd-fork" \
      org.opencontainers.image.documentation="https://example.org/smtpd-fork/docs" \
      org.opencontainers.image.source="https://example.org/smtpd-fork/source" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
# A new volume gets owner and mode of this directory. Group 0 may write, because OpenShift runs an
# image as any user with this group.
RUN groupadd --gid 10025 smtpd-fork \
 && useradd --uid 10025 --gid 10025 --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin smtpd-fork \
 && install -d -o 10025 -g 0 -m 0770 /var/mail/smtpd-fork
COPY --from=build /opt/smtpd-fork /opt/smtpd-fork

# Defaults of options; arguments override them. SHUTDOWN_TIMEOUT: "docker stop" sends SIGKILL after
# 10 seconds; raise it if the container has more time (Kubernetes: 30 seconds).
# HOME: a directory to which any user can write, also one without an entry in /etc/passwd.
ENV HOME=/tmp \
    PATH=/opt/smtpd-fork/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SMTPD_FORK_HANDLER=maildir:/var/mail/smtpd-fork \
    SMTPD_FORK_LOG_TO=stdout \
    SMTPD_FORK_SHUTDOWN_TIMEOUT=8

VOLUME /var/mail/smtpd-fork
EXPOSE 2525
# Numbers, so that Kubernetes can check runAsNonRoot.
USER 10025:10025
WORKDIR /
STOPSIGNAL SIGTERM
# Connects to the first listen address of pid 1, and uses a connection slot until QUIT. A daemon
# that replies that it is full is healthy. docs/container.md shows how to reserve a slot.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
  CMD ["python", "-m", "smtpd_fork.cli.health"]
# Without a shell, so that smtpd-fork is pid 1 and gets the signals. It forks the daemon; pid 1
# forwards signals and reaps orphaned processes.
ENTRYPOINT ["smtpd-fork"]
