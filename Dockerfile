# Longtake and all that it needs, for a machine alone or for a pod of KubeRay's. See README.md, "In a container".
#
#     docker build --build-arg VARIANT=cuda --tag longtake .
#
# A package index of your own is named by a pip.conf: --secret id=pip.conf,src=pip.conf. It leaves no trace in the image.
ARG BASE=docker.io/library/debian:bookworm-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

FROM ${BASE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian drops a version when it mends it, so one that is pinned here could not be installed for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/longtake
WORKDIR /source

# What torch is built for, cpu or cuda, and where its wheels for CPUs are, if the package index has none.
ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt ./
# torch's wheels for CUDA have no suffix, and are pinned to a version of Triton by themselves.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    case "${VARIANT}" in \
        cpu) cp constraints.txt pins.txt ;; \
        cuda) sed -e 's/^torch==\(.*\)+cpu$/torch===\1/' -e '/^triton==/d' constraints.txt > pins.txt; TORCH_CPU_INDEX= ;; \
        *) echo "VARIANT is cpu or cuda, not '${VARIANT}'" >&2; exit 1 ;; \
    esac \
    && python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["otel"], sep="\n")' \
        > requirements.txt \
    # KubeRay hands the applications to the REST API of Ray's dashboard.
    && /opt/longtake/bin/pip install --no-cache-dir ${TORCH_CPU_INDEX:+--extra-index-url "${TORCH_CPU_INDEX}"} \
        --constraint pins.txt --requirement requirements.txt 'ray[default]'

COPY . .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/longtake/bin/pip install --no-cache-dir --no-deps --prefix /code .


FROM ${BASE}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# KubeRay's probes need bash, wget and grep. Triton compiles the launchers of kernels as they are first used.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        bash ca-certificates gcc grep libc6-dev python3 python3-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --create-home --shell /bin/bash longtake \
    && install --directory --owner=longtake --group=longtake /models /recordings
COPY --from=build /opt/longtake /opt/longtake
# Where a login shell looks too. Through a link Python would not find its environment.
RUN ln --symbolic /opt/longtake/bin/longtake /opt/longtake/bin/ray /usr/local/bin/ \
    && printf '#!/bin/sh\nexec /opt/longtake/bin/python "$@"\n' > /usr/local/bin/python \
    && chmod 755 /usr/local/bin/python
# A layer of its own, so that other code is a small download.
COPY --from=build /code /opt/longtake

# `video` is for NVENC.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    LONGTAKE_MODELS=/models \
    LONGTAKE_RECORDINGS=/recordings
USER 1000:1000
WORKDIR /home/longtake
# The page and WebSocket, gRPC, metrics.
EXPOSE 8000 9000 8002
# It asks for --tokens or --insecure before it lets others in.
CMD ["longtake", "serve", "--host", "0.0.0.0"]

ARG REVISION=
LABEL org.opencontainers.image.title="Longtake" \
      org.opencontainers.image.description="Serving interactive, endless, real-time video generation" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
