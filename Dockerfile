# Two stages: the sources and the build's tools stay behind in the first.
FROM docker.io/library/python:3.11-slim AS build
COPY . /src
# No pip in the environment: nothing is installed into it later. Compiled here, as the daemon
# cannot write there. All that is downloaded has the hash that a lock file says, and is a wheel, so
# that no build tool comes in without one; "make lock" writes both files.
RUN python -m venv --without-pip /opt/smtpd-fork \
 && environment=/opt/smtpd-fork/bin/python \
 && locked='--no-cache-dir --require-hashes --only-binary :all: --no-deps' \
 && python -m pip install $locked --target /build -r /src/packaging/build.lock \
 && python -m pip --python $environment install $locked --compile -r /src/packaging/image.lock \
 && PYTHONPATH=/build python -m pip --python $environment install --no-cache-dir --compile \
      --no-index --no-deps --no-build-isolation /src

FROM docker.io/library/python:3.11-slim
# What a build cannot find out by itself. VERSION is smtpd_fork/version.py's; a test compares them.
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
# A volume takes owner and mode from here. Group 0 may write: OpenShift runs an image as any user,
# always with that group.
RUN groupadd --gid 10025 smtpd-fork \
 && useradd --uid 10025 --gid 10025 --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin smtpd-fork \
 && install -d -o 10025 -g 0 -m 0770 /var/mail/smtpd-fork
COPY --from=build /opt/smtpd-fork /opt/smtpd-fork

# Any option may be set so, or given as an argument, which wins. SHUTDOWN_TIMEOUT: "docker stop"
# kills after 10 seconds; who gives it longer (Kubernetes: 30) can raise this too.
# HOME: any user may write there, also one without an entry in /etc/passwd.
ENV HOME=/tmp \
    PATH=/opt/smtpd-fork/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SMTPD_FORK_HANDLER=maildir:/var/mail/smtpd-fork \
    SMTPD_FORK_LOG_TO=stdout \
    SMTPD_FORK_SHUTDOWN_TIMEOUT=8

VOLUME /var/mail/smtpd-fork
EXPOSE 2525
# In figures, so that Kubernetes' runAsNonRoot can tell.
USER 10025:10025
WORKDIR /
STOPSIGNAL SIGTERM
# It asks where the options of pid 1 say, and holds a place for as long as a greeting and a QUIT
# take. A daemon that says it is full is well. See docs/container.md for a place in reserve.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
  CMD ["python", "-m", "smtpd_fork.cli.health"]
# No shell: the daemon is pid 1, and the signal is its own. It forks once: pid 1 passes signals on
# and waits for orphans.
ENTRYPOINT ["smtpd-fork"]
