# kvstored and kvctl, alone, in an image without anything else. RUN has no shell, so that any image with Go in it can build this.
FROM golang:1.26 AS build
WORKDIR /src
ENV CGO_ENABLED=0 GOTOOLCHAIN=local
COPY go.mod go.sum ./
RUN ["go", "mod", "download"]
COPY . .
ARG VERSION=dev
ENV GOFLAGS="-trimpath '-ldflags=-s -w -X main.version=${VERSION}'"
RUN ["go", "build", "-o", "/out/", "./services/cmd/..."]
# A new volume takes the owner of the folder that it is mounted on.
WORKDIR /owned/data
WORKDIR /owned/credentials/ca
WORKDIR /owned/credentials/frontend
WORKDIR /owned/credentials/shard
WORKDIR /owned/credentials/redis
WORKDIR /owned/credentials/client
WORKDIR /owned/credentials/sentry
WORKDIR /owned/credentials/prometheus
WORKDIR /owned/credentials/jaeger
WORKDIR /owned/credentials/grafana

FROM scratch
COPY --from=build /out/ /
COPY --from=build --chown=65532:65532 /owned/ /
USER 65532:65532
EXPOSE 8085 8080 9085
ENTRYPOINT ["/kvstored"]
