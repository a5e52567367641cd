#!/usr/bin/env bash
# Gives the module another path everywhere: go.mod, imports, the prefix of generated packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
new=$1
old=$(go list -m)
[ "$new" != "$old" ] || exit 0
go mod edit -module "$new"
git ls-files '*.go' | xargs sed -i "s#\"$old/#\"$new/#g"
sed -i "s#value: $old/#value: $new/#" buf.gen.yaml
for m in tests/load/go.mod tests/daprapp/go.mod; do
  [ -f "$m" ] && sed -i "s#^\(module\|replace\|require\|\t\)\( *\)$old\b#\1\2$new#; s#replace $old #replace $new #" "$m"
done
make proto
go build ./...
echo "module is now $new"
