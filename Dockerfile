# vitfreeze on CPUs: small, not root.
#
#   docker build -t vitfreeze .
#   docker run --rm -v "$PWD:/work" vitfreeze pretrain
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo install --locked --path vitfreeze-cli --features upload --root /out

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 vitfreeze
COPY --from=build /out/bin/vitfreeze /usr/local/bin/vitfreeze
USER vitfreeze
# Runs are written to ./runs of the folder that is mounted here.
WORKDIR /work
ENTRYPOINT ["vitfreeze"]
