#!/bin/sh
# Gets all that the bridge is built with, without questions; quick when it is all there.
#   compilers, CMake, Ninja, nlohmann-json, utf8proc, OpenSSL, libpng   from this Debian or Ubuntu
#   ONNX Runtime's headers    from Debian trixie's libonnxruntime-dev, unpacked and not installed
#   ONNX Runtime's library    from the pip wheel that Python uses, so that both run the same one
# Usage: get_dependencies.sh [FOLDER]; ONNX Runtime goes to FOLDER (default: build/onnxruntime) as
# include/ and lib/, for -DONNXRUNTIME_ROOT=FOLDER. $PYTHON chooses the Python.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${1:-$here/build/onnxruntime}
python=${PYTHON:-python3}
packages="cmake ninja-build g++ pkg-config nlohmann-json3-dev libutf8proc-dev libssl-dev libpng-dev"

install_packages() {
    missing=
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
            missing="$missing $package"
    done
    [ -z "$missing" ] && return
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing
}

# A list of sources of its own: this system's stays as it is. apt checks the signatures.
get_headers() {
    [ -f "$root/include/onnxruntime_cxx_api.h" ] && return
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$root"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keys" ] || {
        echo "error: $keys is missing: apt-get install debian-archive-keyring" >&2
        exit 1
    }
    echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >"$work/sources.list"
    chmod -R a+rX "$work"
    set -- -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
    apt-get "$@" update
    (cd "$work" && apt-get "$@" download libonnxruntime-dev)
    dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/unpacked"
    cp -r "$work/unpacked/usr/include/onnxruntime" "$work/include"
    rm -rf "$root/include"
    mv "$work/include" "$root/include"
}

link_library() {
    "$python" -c "import onnxruntime" 2>/dev/null ||
        "$python" -m pip install --quiet onnxruntime
    wheel=$("$python" -c \
        "import onnxruntime, os; print(os.path.join(os.path.dirname(onnxruntime.__file__), 'capi'))")
    mkdir -p "$root/lib"
    # The libraries of a wheel for GPUs' providers too, which must lie beside it.
    for library in "$wheel"/libonnxruntime*.so*; do
        ln -sf "$library" "$root/lib/"
    done
    library=$(ls "$wheel"/libonnxruntime.so* | head -n 1)
    ln -sf "$library" "$root/lib/libonnxruntime.so.1"
    ln -sf "$library" "$root/lib/libonnxruntime.so"
}

install_packages
get_headers
link_library
echo "ONNX Runtime: $root"
