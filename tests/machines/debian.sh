#!/usr/bin/env bash
# debian.sh SUITE : a bare Debian of that suite (bookworm or trixie) in a folder, and in it,
# from nothing, what a newcomer runs; a table of the times, and exit code 1 if one failed.
# As root; it takes 5 GB and, on two cores, most of an hour. MIRROR names an archive to
# take it from instead of debootstrap's own.
set -uo pipefail
suite=${1:-}
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() { printf 'debian.sh: %s\n' "$*" >&2; exit 2; }
case "$suite" in bookworm | trixie) ;; *) fail "SUITE = $suite: must be bookworm or trixie" ;; esac
[ $# -eq 1 ] || fail "arguments = $*: must be one, bookworm or trixie"
[ "$(id -u)" -eq 0 ] || fail "user = $(id -un): must be root, for chroot and mount"
command -v debootstrap >/dev/null ||
    fail "debootstrap = missing: apt-get update && apt-get install debootstrap"
command -v git >/dev/null || fail "git = missing: apt-get update && apt-get install git"

logs="$source/build/debian-$suite"
root=$(mktemp -d "${TMPDIR:-/var/tmp}/moe-$suite.XXXXXX") || exit 2
mkdir -p "$logs"

clean_up() {
    trap '' INT TERM HUP
    local process part
    for process in /proc/[0-9]*; do  # what still runs in there would hold the mounts
        if [ "$(readlink "$process/root" 2>/dev/null)" = "$root" ]; then
            kill -KILL "${process#/proc/}" 2>/dev/null
        fi
    done
    for part in sys proc; do  # debootstrap mounts them, too
        while mountpoint -q "$root/$part"; do
            umount "$root/$part" || umount -l "$root/$part" || break
        done
    done
    if grep -q " $root/" /proc/mounts; then  # never through a mount
        echo "debian.sh: $root stays: something is still mounted in it" >&2
    else
        rm -rf --one-file-system "$root"
    fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

failed=0
rows=()
# row NAME LOG COMMAND… : runs it, and keeps how it went and how long it took.
row() {
    local name=$1 log="$logs/$2.log" start=$SECONDS verdict=✓
    shift 2
    printf 'debian.sh: %s …\n' "$name" >&2
    # In the background, so that a signal to this script is heard at once.
    "$@" >"$log" 2>&1 </dev/null &
    if ! wait $!; then
        verdict="✗  $log"
        failed=1
        tail -n 5 "$log" >&2
    fi
    rows+=("$(printf '%-26s %4d s  %s' "$name" $((SECONDS - start)) "$verdict")")
}
inside() {
    chroot "$root" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
        sh -c "cd /root/moe && $*"
}
set_up() {
    debootstrap --variant=minbase "$suite" "$root" ${MIRROR:+"$MIRROR"} &&
        { mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"; } &&
        mount -t sysfs -o ro sysfs "$root/sys" &&
        git clone -q "$source" "$root/root/moe"
}

row "debootstrap and clone" setup set_up
if [ $failed -eq 0 ]; then
    row "./moe compare" compare inside ./moe compare
    row "./moe test" test inside ./moe test
    row "./moe docs" docs inside ./moe docs
    row "./moe compare --spawn 4" spawn inside ./moe compare --spawn 4
fi
printf '\nDebian %s, %s, %d cores\n' "$suite" \
    "$(git -C "$source" rev-parse --short=12 HEAD)" "$(nproc)"
printf '%s\n' "${rows[@]}"
exit $failed
