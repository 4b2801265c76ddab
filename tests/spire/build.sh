#!/usr/bin/env bash
# Builds spire-server, spire-agent and oidc-discovery-provider for the tests in this directory.
#
#   tests/spire/build.sh          into $SPIRE_BIN, or target/spire/bin of this repository
#
# What is there at the version of tests/spire/build/go.mod already is left alone. A first build
# takes some minutes; nothing but Go modules is downloaded.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${SPIRE_BIN:-$here/../../target/spire/bin}

# The versions have one home: go.mod.
version=$(awk '$1 == "github.com/spiffe/spire" { sub(/^v/, "", $2); print $2 }' "$here/build/go.mod")
go_wanted=$(awk '$1 == "go" { print $2 }' "$here/build/go.mod")
[ -n "$version" ] || { echo "build.sh: $here/build/go.mod names no version of SPIRE" >&2; exit 1; }

# A build from source calls itself 1.2.3-dev-unk.
is_current() {
  local said
  said=$("$bin/$1" --version 2>&1) || return 1
  said=${said##*$'\n'}
  [ "${said%%-*}" = "$version" ]
}

packages=()
for tool in cmd/spire-server cmd/spire-agent support/oidc-discovery-provider; do
  is_current "${tool##*/}" 2>/dev/null || packages+=("github.com/spiffe/spire/$tool")
done
if [ ${#packages[@]} -eq 0 ]; then
  echo "SPIRE $version is in $bin"
  exit 0
fi

missing=()
command -v go >/dev/null 2>&1 || missing+=("go (version $go_wanted or newer)")
# spire-server keeps its data in SQLite, which is C.
command -v "${CC:-gcc}" >/dev/null 2>&1 || missing+=("${CC:-gcc} (spire-server needs cgo for SQLite)")
if [ ${#missing[@]} -gt 0 ]; then
  echo "build.sh: SPIRE $version cannot be built, this is missing:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 1
fi

mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
# Built aside and moved, so that nobody ever runs half a binary.
new=$(mktemp -d "$bin/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
echo "building SPIRE $version into $bin: ${packages[*]##*/}"
(cd "$here/build" && CGO_ENABLED=1 GOBIN=$new go install -trimpath -ldflags '-s -w' "${packages[@]}")
mv -f "$new"/* "$bin/"

for package in "${packages[@]}"; do
  is_current "${package##*/}" || {
    echo "build.sh: $bin/${package##*/} does not say it is $version" >&2
    exit 1
  }
done
