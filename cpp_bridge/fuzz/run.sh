#!/usr/bin/env bash
# Fuzzes the readers of files and text with libFuzzer under AddressSanitizer (leaks too) and UBSan.
#
#   cpp_bridge/fuzz/run.sh [EXECUTIONS] [RESULT.json]
#
# EXECUTIONS (5200000) are shared among the harnesses; the figures go to
# benchmarks/results/bridge_fuzzing.json. It ends at the first crash, leak or input that takes over
# ten seconds, and leaves the input in cpp_bridge/build/fuzz/HARNESS-*: mend it, then add the input
# to the corpus. Needs: apt-get install clang-14 libclang-rt-14-dev (or name another in CXX).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
executions=${1:-5200000}
result=${2:-$here/../../benchmarks/results/bridge_fuzzing.json}
build=$here/../build/fuzz
compiler=${CXX:-clang++-14}
flags="-std=c++17 -O2 -g1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
       -fno-omit-frame-pointer -I $here/../files -I $here"

mkdir -p "$build"
objects=()
for source in "$here"/../files/*.cpp "$here"/harnesses.cpp; do
    object=$build/$(basename "$source" .cpp).o
    # shellcheck disable=SC2086
    if [[ ! $object -nt $source ]] || [[ -n $(find "$here" "$here/../files" -name '*.hpp' -newer "$object") ]]; then
        $compiler $flags -c "$source" -o "$object"
    fi
    objects+=("$object")
done

# The share of each harness in thousandths, and the longest input that it is given. Reading whole
# tokenizers is slowest and touches no more than JSON and a loop over it.
harnesses=("subject 350 1024" "manifest 200 2048" "prompt 420 256" "tokenizer 30 4096")
lines=()
for harness in "${harnesses[@]}"; do
    read -r name share longest <<<"$harness"
    # shellcheck disable=SC2086
    $compiler $flags -fsanitize=fuzzer -DHBSDK_HARNESS="$name" "$here/target.cpp" "${objects[@]}" \
        -lcrypto -lutf8proc -o "$build/fuzz-$name"
    rm -rf "$build/found-$name"
    mkdir -p "$build/found-$name"
    start=$(date +%s)
    "$build/fuzz-$name" -fork=0 -runs=$((executions * share / 1000)) -max_len="$longest" -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$build/$name-" -verbosity=1 \
        -dict="$here/words.dict" "$build/found-$name" "$here/corpus/$name" 2>"$build/$name.log" || {
        tail -n 60 "$build/$name.log"
        exit 1
    }
    done=$(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$name.log")
    covered=$(grep -oE 'cov: [0-9]+' "$build/$name.log" | tail -n 1 | cut -d' ' -f2)
    lines+=("$name $done $covered $(($(date +%s) - start))")
    echo "$name: $done executions, $covered edges covered, $(($(date +%s) - start)) s"
done

version() { dpkg-query -W -f='${Version}' "$1" 2>/dev/null || echo unknown; }
"${PYTHON:-python3}" - "$result" "$($compiler --version | head -n 1)" "$(version libssl3)" \
    "$(version libutf8proc2)" "$(version nlohmann-json3-dev)" "$executions" "${lines[@]}" <<'PYTHON'
import datetime
import json
import pathlib
import platform
import sys

result, compiler, openssl, utf8proc, json_library, asked, *lines = sys.argv[1:]
harnesses = {
    name: {"executions": int(done), "edges_covered": int(covered), "seconds": int(seconds)}
    for name, done, covered, seconds in map(str.split, lines)
}
report = {
    "command": f"cpp_bridge/fuzz/run.sh {asked}",
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "executions": sum(one["executions"] for one in harnesses.values()),
    "seconds": sum(one["seconds"] for one in harnesses.values()),
    "crashes_hangs_leaks": 0,  # the first would have ended the run before this line
    "seconds_allowed_an_input": 10,
    "sanitizers": "address (leaks too), undefined",
    "compiler": compiler,
    "libraries": {"openssl": openssl, "utf8proc": utf8proc, "nlohmann-json": json_library},
    "machine": platform.machine(),
    "harnesses": harnesses,
}
path = pathlib.Path(result)
temporary = path.with_name(f".{path.name}")
temporary.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
temporary.replace(path)
print(f"{report['executions']} executions in all, written to {path.name}")
PYTHON
