#!/usr/bin/env bash
# make run: start the embedded store on a data directory, replay the first part of a real prompt trace into it, print what
# that took, and keep serving. Ctrl-C ends it in order; after kill -9 the next make run finds everything that was there.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=${1:-bin}
data=${2:-data}
requests=${REQUESTS:-1000}
trace=tests/load/testdata/conversation_trace.jsonl.gz
addresses=$(mktemp)
log="$data/kvstored.log"
mkdir -p "$data"

"$bin/kvstored" -data-dir "$data" -address-file "$addresses" 2>>"$log" &
server=$!
trap 'kill -TERM $server 2>/dev/null && wait $server || true; rm -f "$addresses"' EXIT # also when the replay fails
trap 'exit 0' INT TERM
until [ -s "$addresses" ]; do
  kill -0 $server 2>/dev/null || { echo "kvstored did not start; the end of $log:" >&2; tail -n 5 "$log" >&2; exit 1; }
  read -rt 0.05 <> <(:) || true
done
grpc=$(sed -n 's/.*"grpc": *"\([^"]*\)".*/\1/p' "$addresses")
admin=$(sed -n 's/.*"admin": *"\([^"]*\)".*/\1/p' "$addresses")
export KVSTORE_ENDPOINT=$grpc

cat <<EOF

kvstored serves on $grpc; its data is in $data/, its log in $log.

Replaying the first $requests requests of an hour of a real LLM service: each one looks up the blocks of its prompt, reads
the hits and compares every byte, and writes the misses durably (fsync), 16 KiB a block, 512 tokens each.

EOF
"$bin/kvctl" bench prompt --trace "$trace" --limit "$requests" -c 32 --name demo --keep

cat <<EOF

The blocks stay: run this again and nearly all of them are hits. Now it keeps serving; from another terminal:

  export KVSTORE_ENDPOINT=$grpc
  $bin/kvctl put greeting hello && $bin/kvctl get greeting
  $bin/kvctl put report @README.md --ttl 1h --tag team=platform
  $bin/kvctl ls
  $bin/kvctl watch --state                 # what is there, then changes as they happen
  $bin/kvctl status                        # shards, revisions, bytes
  $bin/kvctl prompt usage --namespace demo # the replayed blocks
  $bin/kvctl help                          # everything else
  curl -s http://$admin/readyz

kill -9 $server and make run again: all data is there. Ctrl-C ends it in order.
EOF
wait $server
