# SPDX-License-Identifier: MIT OR Apache-2.0
# A recorder that runs as nobody, with descriptors handed in: docs/containers.md.
#
#   docker build -t unified .
#
# tests/programs/test_containers.py follows these steps in a Debian of its own; it knows the instructions that are here.

FROM debian:12 AS build
ENV PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /src
# These first, so that what is installed is not installed again after each change of the sources. Rust is rustup's.
COPY Cargo.toml /src/
COPY packaging /src/packaging
RUN packaging/deps install build deb
COPY . /src
RUN make -f Makefile.full-stack deb

FROM debian:12
COPY --from=build /src/target/full-stack/deb/libunified0_*.deb /tmp/
COPY --from=build /src/target/full-stack/bin/unprivileged /usr/local/bin/
RUN apt-get update -q && apt-get install -q -y --no-install-recommends /tmp/libunified0_*.deb && \
	rm -rf /tmp/libunified0_*.deb /var/lib/apt/lists/*
USER 65534:65534
ENTRYPOINT ["/usr/local/bin/unprivileged"]
