#!/usr/bin/env bash
# A cluster as processes of this machine: Redis, Dapr's placement, three hosts of shards and two frontends, each beside a daprd of its own.
# usage: cluster.sh up BIN DIR | down DIR
# Whatever ends by itself, or is killed, is started again 200 ms later. DIR has a log and the process id of each.
set -euo pipefail

DAPR=$(realpath "$(dirname "$0")/../../components/dapr")
HOSTS=3 FRONTENDS=2 SHARDS=${SHARDS:-64}
# Go takes it that a process has the machine to itself. Here they share it: each may run on twice its part of the cores, rounded up, so that threads
# are not woken for cores which the others need.
PROCS=${GOMAXPROCS:-$(((2 * $(nproc) + HOSTS + FRONTENDS - 1) / (HOSTS + FRONTENDS)))}
# Beside the port table of services/node (gRPC 8085+n, REST 8080+10n, admin 2112+n, data 9085+n): nothing of these is taken by dapr init.
REDIS=6390 PLACEMENT=50105 HEALTHZ=50106 RAFT=50107
dapr_grpc() { echo $((50110 + $1)); }
dapr_http() { echo $((50120 + $1)); }
dapr_internal() { echo $((50130 + $1)); }

die() { echo "$*" >&2; exit 1; }

# supervise NAME COMMAND... runs a command again and again until the supervisor gets SIGTERM, which it passes on.
supervise() {
  local name=$1; shift
  (
    child=""
    trap 'trap "" TERM; [ -z "$child" ] || { kill "$child" 2>/dev/null; wait "$child" 2>/dev/null; }; exit 0' TERM
    while :; do
      "$@" >>"$DIR/$name.log" 2>&1 &
      child=$!
      echo "$child" >"$DIR/$name.pid"
      wait "$child" || true
      sleep 0.2 & wait $!
    done
  ) </dev/null >/dev/null 2>&1 &
  echo "$! $name" >>"$DIR/supervisors"
}

await() { # NAME URL
  for _ in $(seq 600); do
    curl -fsS -o /dev/null "$2" 2>/dev/null && return
    sleep 0.1
  done
  tail -n 20 "$DIR/$1.log" >&2
  die "$1 does not answer $2; its log is $DIR/$1.log"
}

sidecar() { # NAME APP-ID INSTANCE
  supervise "$1-daprd" env DAPR_HOST_IP=127.0.0.1 daprd --app-id "$2" --dapr-listen-addresses 127.0.0.1 \
    --dapr-grpc-port "$(dapr_grpc "$3")" --dapr-http-port "$(dapr_http "$3")" --dapr-internal-grpc-listen-address 127.0.0.1 \
    --dapr-internal-grpc-port "$(dapr_internal "$3")" --enable-metrics=false --placement-host-address 127.0.0.1:$PLACEMENT \
    --scheduler-host-address "" --dapr-graceful-shutdown-seconds 1 --resources-path "$DAPR/resources" --config "$DAPR/config.yaml"
}

up() {
  BIN=$(realpath "$1") DIR=$2
  for b in redis-server daprd placement curl; do command -v "$b" >/dev/null || die "$b is not on PATH (make sidecars builds daprd and placement; Debian has redis-server and curl)"; done
  mkdir -p "$DIR/redis"; DIR=$(realpath "$DIR")
  [ ! -e "$DIR/supervisors" ] || die "a cluster runs in $DIR, or was not stopped there: make down"
  supervise redis redis-server --bind 127.0.0.1 --port $REDIS --dir "$DIR/redis" --appendonly yes --appendfsync always --save "" --maxmemory 1gb --maxmemory-policy noeviction
  supervise placement placement --id p0 --initial-cluster p0=127.0.0.1:$RAFT --listen-address 127.0.0.1 --port $PLACEMENT \
    --healthz-listen-address 127.0.0.1 --healthz-port $HEALTHZ --enable-metrics=false --keepalive-time 1s --keepalive-timeout 1s
  await placement http://127.0.0.1:$HEALTHZ/healthz
  local n name
  for ((n = 0; n < FRONTENDS; n++)); do
    name=frontend-$((n + 1))
    sidecar "$name" kvstore "$n"
    supervise "$name" env GOMAXPROCS="$PROCS" "$BIN/kvstored" -target frontend -instance "$n" -dapr-grpc "127.0.0.1:$(dapr_grpc "$n")"
  done
  for ((n = FRONTENDS; n < FRONTENDS + HOSTS; n++)); do
    name=shard-$((n - FRONTENDS + 1))
    sidecar "$name" kvstore-shard "$n"
    supervise "$name" env GOMAXPROCS="$PROCS" "$BIN/kvstored" -target shard -instance "$n" -engine redis -redis-url redis://127.0.0.1:$REDIS -shards "$SHARDS" \
      -dapr-grpc "127.0.0.1:$(dapr_grpc "$n")"
  done
  for ((n = 0; n < FRONTENDS + HOSTS; n++)); do
    if ((n < FRONTENDS)); then name=frontend-$((n + 1)); else name=shard-$((n - FRONTENDS + 1)); fi
    await "$name" "http://127.0.0.1:$((2112 + n))/readyz"
  done
  cat <<T
A cluster runs: $SHARDS shards on $HOSTS hosts, $FRONTENDS frontends, Redis with a sync before each answer. Logs and process ids are in $DIR.
  frontends  127.0.0.1:8085  127.0.0.1:8086   REST at 127.0.0.1:8080 and :8090
Try:
  $BIN/kvctl put greeting hello
  KVSTORE_ENDPOINT=127.0.0.1:8086 $BIN/kvctl get greeting
  $BIN/kvctl status
  kill -9 \$(cat $DIR/shard-1.pid)      # its shards are served by the other hosts; it comes back
  make down
T
}

# down stops what was started last first, each in good order.
down() {
  DIR=$1
  [ -e "$DIR/supervisors" ] || { echo "no cluster runs in $DIR"; return; }
  local pid name
  for what in frontend-. shard-. '.*-daprd' placement redis; do
    while read -r pid name; do
      [[ $name =~ ^$what$ ]] && kill "$pid" 2>/dev/null || true
    done <"$DIR/supervisors"
    while read -r pid name; do
      [[ $name =~ ^$what$ ]] || continue
      for _ in $(seq 300); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
      ! kill -0 "$pid" 2>/dev/null || die "$name (process $pid) does not end; see $DIR/$name.log"
    done <"$DIR/supervisors"
  done
  rm -f "$DIR/supervisors" "$DIR"/*.pid
  echo "stopped; what it stored is in $DIR/redis"
}

case ${1:-} in
  up) [ $# = 3 ] || die "usage: cluster.sh up BIN DIR"; up "$2" "$3" ;;
  down) [ $# = 2 ] || die "usage: cluster.sh down DIR"; down "$2" ;;
  *) die "usage: cluster.sh up BIN DIR | down DIR" ;;
esac
