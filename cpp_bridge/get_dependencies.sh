#!/bin/sh
# Gets all that the bridge is built with, without questions; quick when it is all there.
#   compilers, CMake, Ninja, nlohmann-json, utf8proc, OpenSSL, libpng   from this Debian or Ubuntu
#   ONNX Runtime's headers    from Debian trixie's libonnxruntime-dev, unpacked and not installed
#   ONNX Runtime's library    from the pip wheel that Python uses, so that both run the same one
# Usage: get_dependencies.sh [FOLDER]; ONNX Runtime goes to FOLDER (default: build/onnxruntime) as
# include/ and lib/, for -DONNXRUNTIME_ROOT=FOLDER. $PYTHON chooses the Python, whose library is
# linked where it lies. Debian 12 or Ubuntu 24.04 and newer; as root, or with sudo where packages
# are missing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${1:-$here/build/onnxruntime}
python=${PYTHON:-python3}
packages="cmake ninja-build g++ pkg-config nlohmann-json3-dev libutf8proc-dev libssl-dev libpng-dev"
keys=/usr/share/keyrings/debian-archive-keyring.gpg # of the package debian-archive-keyring

fail() {
    echo "error: $1" >&2
    exit 1
}

check_system() {
    for program in apt-get dpkg-query dpkg-deb; do
        command -v "$program" >/dev/null || fail "$program is missing: this script is for Debian and\
 Ubuntu. Elsewhere install what cpp_bridge/README.md lists."
    done
}

install_packages() {
    # Debian's keys, with which the headers below are checked, are on every Debian but no Ubuntu.
    [ -f "$keys" ] || [ -f "$root/include/onnxruntime_cxx_api.h" ] ||
        packages="$packages debian-archive-keyring"
    missing=
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
            missing="$missing $package"
    done
    [ -z "$missing" ] && return
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            fail "packages are missing, and installing them needs root or sudo. As root:\
 apt-get install$missing"
        sudo=sudo
    fi
    $sudo apt-get update -qq
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing ||
        fail "apt-get cannot install$missing. On Ubuntu they need the component universe:\
 add-apt-repository universe"
}

check_versions() {
    json=$(dpkg-query -W -f '${Version}' nlohmann-json3-dev)
    dpkg --compare-versions "$json" ge 3.11 ||
        fail "nlohmann-json 3.11 or newer is needed, this system has $json: Debian 12, Ubuntu 24.04\
 and newer have it"
}

# A list of sources of its own: this system's stays as it is. apt checks the signatures, and needs
# no root to download.
get_headers() {
    [ -f "$root/include/onnxruntime_cxx_api.h" ] && return
    [ -f "$keys" ] || fail "$keys is missing: apt-get install debian-archive-keyring"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$root"
    echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >"$work/sources.list"
    chmod -R a+rX "$work"
    set -- -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
    apt-get "$@" update
    (cd "$work" && apt-get "$@" download libonnxruntime-dev) ||
        fail "cannot download libonnxruntime-dev of Debian trixie for $(dpkg --print-architecture)"
    dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$work/unpacked"
    cp -r "$work/unpacked/usr/include/onnxruntime" "$work/include"
    rm -rf "$root/include"
    mv "$work/include" "$root/include"
}

link_library() {
    "$python" -c "import onnxruntime" 2>/dev/null ||
        "$python" -m pip install --quiet onnxruntime ||
        fail "$python has no onnxruntime and pip cannot install it: activate a virtual environment,\
 or set PYTHON to an interpreter that has it"
    wheel=$("$python" -c \
        "import onnxruntime, os; print(os.path.join(os.path.dirname(onnxruntime.__file__), 'capi'))")
    library=$(find "$wheel" -name 'libonnxruntime.so*' | sort | head -n 1)
    [ -n "$library" ] || fail "there is no libonnxruntime.so in $wheel"
    mkdir -p "$root/lib"
    # The libraries of a wheel for GPUs' providers too, which must lie beside it.
    for part in "$wheel"/libonnxruntime*.so*; do
        ln -sf "$part" "$root/lib/"
    done
    ln -sf "$library" "$root/lib/libonnxruntime.so.1"
    ln -sf "$library" "$root/lib/libonnxruntime.so"
}

check_system
install_packages
check_versions
get_headers
link_library
echo "ONNX Runtime: $root"
