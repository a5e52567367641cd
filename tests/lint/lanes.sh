#!/usr/bin/env bash
# Runs targets of the Makefile side by side. Each argument is a lane: targets that run one after the other. What a target prints comes in one
# piece when it has ended, with how long it took and the processor time that it used. After a failure no lane begins another target, what runs
# is awaited, and all of it fails.
#
#	lanes.sh 'unit race' 'redis crash' fuzz
set -euo pipefail
cd "$(dirname "$0")/../.."
make=${MAKE:-make}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'trap - INT TERM; kill 0' INT TERM # in the background nobody hears a Ctrl-C
touch "$logs/lock" "$logs/passed"
TIMEFORMAT='%0R s, processors %0U s + %0S s'

lane() {
  local target took
  for target; do
    [ ! -e "$logs/failed" ] || return 0
    printf '== %s begins at %s s\n' "$target" "$SECONDS"
    if took=$( { time "$make" --no-print-directory "$target" >"$logs/$target.log" 2>&1; } 2>&1); then
      echo "$target" >>"$logs/passed"
      tell "$target" "passed: $took"
    else
      echo "$target" >>"$logs/failed"
      tell "$target" "FAILED: $took; no other target begins, what runs is awaited"
    fi
  done
}

# tell prints what a target has printed, in one piece.
tell() {
  (
    flock 9
    printf '\n== %s\n' "$1"
    cat "$logs/$1.log"
    printf '== %s %s\n\n' "$1" "$2"
  ) 9>>"$logs/lock"
}

for targets; do
  # shellcheck disable=SC2086 # a lane is words
  lane $targets &
done
wait
if [ -e "$logs/failed" ]; then
  # Once more what tests complained of, since logs of processes may stand between that and the end.
  while read -r target; do
    printf '\n== %s, once more:\n' "$target"
    grep -E '_test\.go:[0-9]+:|^ *--- FAIL|^panic:|DATA RACE|^make|[Ee]rror' "$logs/$target.log" | grep -Ev 'level=|"level"|log of ' | tail -40 | cut -c1-400 || true
  done <"$logs/failed"
  printf '\nFAILED: %s\n' "$(paste -sd' ' "$logs/failed")"
  exit 1
fi
# A lane that ended for another reason has not run all of its targets.
wanted=$(tr ' ' '\n' <<<"$*" | sort) passed=$(sort "$logs/passed")
[ "$wanted" = "$passed" ] || { printf '\nFAILED: wanted\n%s\npassed\n%s\n' "$wanted" "$passed"; exit 1; }
