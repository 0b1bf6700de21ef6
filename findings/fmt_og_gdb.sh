#!/usr/bin/env bash
# One call of fmt::print in a file built for gdb (g++ -g, no -O), and `break FUNCTION` stops in
# front of that function's prologue: arguments show what the stack held before.
#
# {fmt} 9.1 says `#pragma GCC optimize("Og")` around itself where nothing is optimised. What it
# instantiates then has location lists, and gdb, which trusts GCC's locations in a unit that has
# any, no longer skips prologues in the whole unit, although its functions are -O0 code.
#
# Seen with g++ 12.2.0, gdb 13.1, libfmt-dev 9.1.0+ds1-2 (Debian 12):
#   without {fmt}             Breakpoint 1, work (s="abc") …   at its first statement
#   with {fmt}                Breakpoint 1, work (s=…) …       at its opening line, s is chance
#   {fmt} sees __OPTIMIZE__   Breakpoint 1, work (s="abc") …   at its first statement
# Way out: define __OPTIMIZE__ while {fmt}'s header is read, and only then.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq -o APT::Sandbox::User=root libfmt-dev=9.1.0+ds1-2
dpkg-deb -x libfmt-dev_*.deb fmt
g++ --version | head -n 1
gdb --version | head -n 1

# main.cpp HEADERS CALL
write_program() {
    cat >main.cpp <<TEXT
$1
#include <cstdio>
#include <string>
int work(const std::string& s) {
    $2
    return int(s.size());
}
int main() { return work("abc") != 3; }
TEXT
}
# Where gdb stops, and with what argument.
stop() {
    g++ -std=c++20 -g -DFMT_HEADER_ONLY -I fmt/usr/include main.cpp -o main
    DEBUGINFOD_URLS="" gdb -q -batch -ex 'break work' -ex run main 2>/dev/null |
        sed -n 's/^Breakpoint 1, \(work (s=.*)\) at .*/\1/p'
}
expect() { # NAME WANTED
    local seen
    seen=$(stop)
    printf '%-26s %s\n' "$1" "$seen"
    [ "$seen" = "$2" ] || { echo "changed: expected $2" >&2; exit 1; }
}

write_program "" 'std::printf("%s\n", s.c_str());'
expect "without {fmt}" 'work (s="abc")'
write_program '#include <fmt/format.h>' 'fmt::print("{}\n", s);'
seen=$(stop)
printf '%-26s %s\n' "with {fmt}" "$seen"
[ "$seen" != 'work (s="abc")' ] || { echo "changed: gdb skips the prologue" >&2; exit 1; }
write_program '#include <algorithm>
#include <memory>
#define __OPTIMIZE__ 1
#include <fmt/format.h>
#undef __OPTIMIZE__' 'fmt::print("{}\n", s);'
expect "{fmt} sees __OPTIMIZE__" 'work (s="abc")'
