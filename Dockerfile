# The tonearm image: the program, libtorch for the CPU, and the default models. Needs BuildKit, whose caches keep downloads
# and compiled crates between builds.
#
#   docker build -t tonearm .
#   docker run --rm -v "$PWD:/music:ro" tonearm predict /music/song.mp3

FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
ENV TONEARM_CACHE=/var/cache/tonearm
WORKDIR /src
COPY . .
# Cached folders are not part of the image, so what it needs is put together in the same step.
RUN --mount=type=cache,target=/var/cache/tonearm \
    --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    make models \
 && install -D target/release/tonearm /image/usr/local/bin/tonearm \
 && mkdir -p /image/usr/local/lib/tonearm /image/usr/share/tonearm \
 && cp -L .libtorch/lib/*.so* /image/usr/local/lib/tonearm \
 && cp -rL models/repository /image/usr/share/tonearm/models

FROM debian:12.12-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates libssl3 libstdc++6 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin tonearm
COPY --from=build /image /
ENV TONEARM__MODELS__DIR=/usr/share/tonearm/models
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
# The admin port, for whoever sets TONEARM__ADMIN__LISTEN; inside the image it is loopback too.
EXPOSE 8080
ENTRYPOINT ["tonearm"]
CMD ["run"]
