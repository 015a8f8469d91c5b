# One image with the service and the simulator of D1. The simulator is a program
# of its own: the service holds none of it that runs unless it is asked for dev
# or demo.
FROM golang:1.26 AS build
WORKDIR /src
# Apart from the sources, so that a change of code downloads nothing again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o /out/ ./cmd/server ./cmd/d1sim
# A new named volume takes over the owner and the mode of the folder that it is
# mounted on. Without this one, /keys would be root's and closed to the service.
RUN install -d -m 0700 -o 65532 -g 65532 /out/keys

# Root certificates, time zones, and the user nonroot (65532); no shell.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/server /out/d1sim /
COPY --from=build --chown=65532:65532 /out/keys /keys
USER 65532:65532
# The API, D1's notifications, metrics and profiles (keep these private).
EXPOSE 8080 8081 9090
# Asks /readyz of the API; a listener elsewhere or with TLS needs --url.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["/server", "healthcheck"]
# SIGTERM drains for up to 40 s: give it that long (`docker stop --time=45`).
STOPSIGNAL SIGTERM
ENTRYPOINT ["/server"]
CMD ["serve", "--config", "/config/server.yaml"]
