# syntax=docker/dockerfile:1

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# The registry and target/ outlive this layer, so that a change of Larder's own sources compiles
# Larder alone. The binary is copied out because a cache mount is not part of the image. The touch
# is for a target/ that is newer than the sources of the revision being built: Cargo goes by the
# time of modification, and would keep the binary that it has. Line numbers are most of the
# binary and nobody reads them in a container; the names of functions stay, for backtraces.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin larder \
    && objcopy --strip-debug target/release/larder /usr/local/bin/larder
# The runtime image has no shell to make a directory with. The shipped configuration listens on
# loopback and keeps its objects in the working directory, which is not what a container is for.
RUN mkdir /var/lib/larder /etc/larder \
    && sed -e 's|^listen = \["127.0.0.1:8080"\]|listen = ["0.0.0.0:8080"]|' \
           -e 's|^url = "file:./larder-cache"|url = "file:/var/lib/larder"|' config.toml > /etc/larder/config.toml \
    && larder check --config /etc/larder/config.toml

# libc, libgcc and CA certificates (for S3 over TLS), and nothing to log in to. The builder is of
# the same Debian release, so that the libc is the one that was linked against.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /usr/local/bin/larder /usr/local/bin/larder
# A named volume mounted here is filled from this directory, its owner included. 65532 is nonroot.
COPY --from=build --chown=65532:65532 /var/lib/larder /var/lib/larder
# A file of your own, mounted over this one, decides alone.
COPY --from=build /etc/larder/config.toml /etc/larder/config.toml

# The admin listener stays on the container's own loopback address, 127.0.0.1:9090: it can purge
# everything, and needs no token there. Reach it from inside the container:
#     docker exec CONTAINER larder purge http://localhost:8080/page
# To have metrics scraped from outside, set LARDER_ADMIN__LISTEN=0.0.0.0:9090 and
# LARDER_ADMIN__TOKEN, without which Larder refuses to start on such an address.
# A note for readers and for `docker run -P`: other ports of server.listen work without one, 80 and 443 included.
EXPOSE 8080

# As a number, so that a platform that forbids root can tell without looking the name up.
USER 65532:65532
WORKDIR /var/lib/larder

# SIGTERM: no new connections, requests under way are finished, the queue to the durable tier is
# written out. That may take server.drain_timeout + durable.drain_timeout = 25 s, and Docker kills
# after 10 s if it is not told otherwise: docker run --stop-timeout 30
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/larder"]
CMD ["--config", "/etc/larder/config.toml"]
