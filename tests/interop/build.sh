#!/usr/bin/env bash
# Builds the clients of tests/interop that are not ours: grpcurl, and gospiffe-fetch (go-spiffe).
#
#   tests/interop/build.sh        into $INTEROP_BIN, or target/interop/bin of this repository
#
# Go's own build cache makes a second run cheap, so it always asks Go whether anything changed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${INTEROP_BIN:-$here/../../target/interop/bin}

command -v go >/dev/null 2>&1 || {
  echo "build.sh: go is missing (version $(awk '$1 == "go" { print $2 }' "$here/go/go.mod") or newer)" >&2
  exit 1
}

mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
# Built aside and moved, so that nobody ever runs half a binary.
new=$(mktemp -d "$bin/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
(cd "$here/go" && CGO_ENABLED=0 GOBIN=$new go install -trimpath -ldflags '-s -w' \
  github.com/fullstorydev/grpcurl/cmd/grpcurl ./gospiffe-fetch)
mv -f "$new"/* "$bin/"
echo "grpcurl and gospiffe-fetch are in $bin"
