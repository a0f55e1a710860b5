# SPDX-License-Identifier: MIT OR Apache-2.0
# A recorder that runs as nobody, with descriptors handed in: docs/containers.md.
#
#   docker build -t unified .
#
# tests/programs/test_containers.py follows these steps in a Debian of its own; it knows the instructions that are here.

FROM debian:12 AS build
RUN apt-get update -q && apt-get install -q -y --no-install-recommends \
	gcc libc6-dev make clang llvm m4 libelf-dev zlib1g-dev libxdp-dev pkg-config binutils python3 curl ca-certificates debhelper
ENV PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Debian 12's own compiler is too old.
RUN command -v cargo || curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
COPY . /src
WORKDIR /src
RUN make -f Makefile.full-stack deb

FROM debian:12
COPY --from=build /src/target/full-stack/deb/libunified0_*.deb /tmp/
COPY --from=build /src/target/full-stack/bin/unprivileged /usr/local/bin/
RUN apt-get update -q && apt-get install -q -y --no-install-recommends /tmp/libunified0_*.deb && \
	rm -rf /tmp/libunified0_*.deb /var/lib/apt/lists/*
USER 65534:65534
ENTRYPOINT ["/usr/local/bin/unprivileged"]
