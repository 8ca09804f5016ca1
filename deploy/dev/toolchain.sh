#!/usr/bin/env bash
# What `make setup` needs before pip can build the kernel: Rust (cargo, rustc), a C linker and a Python that makes
# virtual environments. Finds them; as root installs what is missing from Debian; as an ordinary user unpacks
# Debian's packages into .forebay/toolchain of the checkout. Writes .forebay/toolchain/env.sh for setup to source:
#
#   PATH            has a cargo first that is new enough
#   PYTHON          the interpreter to use
#   make_venv DIR   a function that makes a virtual environment with it
#
# May be run again at any time; takes half a second when nothing is missing. PYTHON=... chooses the interpreter.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
toolchain=$checkout/.forebay/toolchain
rust_min=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$checkout/common/kernel/Cargo.toml")
python_range='(3, 11) <= sys.version_info[:2] < (3, 14)'

say() { printf 'toolchain: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}
am_root() { [ "$(id -u)" = 0 ]; }
has_apt() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }

# --- Debian's packages: installed by root, unpacked by others --------------------------------------------------------

apt_options=()
apt_ready=

apt_update() { # once; an ordinary user keeps lists and cache of their own
    [ -z "$apt_ready" ] || return 0
    apt_ready=yes
    if ! am_root; then
        mkdir -p "$toolchain/apt/lists/partial" "$toolchain/apt/cache/archives/partial"
        apt_options=(-o Dir::State::lists="$toolchain/apt/lists" -o Dir::Cache="$toolchain/apt/cache")
        apt_options+=(-o Dir::State::status=/var/lib/dpkg/status -o Debug::NoLocking=1)
    fi
    # Images for containers hook an `rm` of root's cache into every update.
    { apt-get "${apt_options[@]}" -qq update 2>&1 || say 'some package lists could not be updated; going on'; } |
        sed '/^rm: cannot remove/d' >&2
}

apt_install() {
    has_apt && am_root || return 1
    say "installing $*"
    apt_update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >"$toolchain/apt.log" 2>&1 || {
        tail -n 5 "$toolchain/apt.log" >&2
        return 1
    }
}

apt_unpack() { # with what they need and is not installed here
    has_apt || return 1
    apt_update
    local debs=$toolchain/apt/debs packages deb
    packages=$(apt-get "${apt_options[@]}" --simulate --no-install-recommends install "$@" | awk '$1 == "Inst" {print $2}')
    say "unpacking into .forebay/toolchain: ${packages//$'\n'/ }"
    mkdir -p "$debs" "$toolchain/root"
    # shellcheck disable=SC2086 # one word a package
    (cd "$debs" && apt-get "${apt_options[@]}" -qq download $packages >&2)
    for deb in "$debs"/*.deb; do
        dpkg -x "$deb" "$toolchain/root"
    done
    rm -rf "$toolchain/apt"
    apt_ready=
}

# --- Rust ------------------------------------------------------------------------------------------------------------

rust_ok() { # are cargo and rustc of this folder at least rust_min?
    local tool version
    for tool in cargo rustc; do
        [ -x "$1/$tool" ] && version=$("$1/$tool" --version 2>/dev/null) || return 1
        version=${version#"$tool "}
        printf '%s\n' "$rust_min" "${version%% *}" | sort --check=quiet --version-sort || return 1
    done
}

find_rust() { # unpacked by us before, on PATH, or where rustup puts it
    local folders folder
    IFS=: read -ra folders <<<"$toolchain/bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    for folder in "${folders[@]}"; do
        if rust_ok "$folder"; then
            printf '%s' "$folder"
            return
        fi
    done
    return 1
}

rust_packages() { # older releases of Debian have a new Rust under the names that its web browsers build with
    local suffix version
    for suffix in -web ''; do
        version=$(apt-cache "${apt_options[@]}" policy "rustc$suffix" | awk '/Candidate:/ {print $2}')
        if dpkg --compare-versions "${version:-0}" ge "$rust_min" 2>/dev/null; then
            printf '%s\n' "cargo$suffix" "rustc$suffix"
            return
        fi
    done
    return 1
}

wrap_rust() { # unpacked programs find their libraries and their sysroot only when told
    local libraries=("$toolchain"/root/usr/lib/*-linux-*)
    mkdir -p "$toolchain/bin"
    for tool in cargo rustc; do
        cat >"$toolchain/bin/$tool" <<END
#!/bin/sh
export LD_LIBRARY_PATH="${libraries[0]}\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
exec "$toolchain/root/usr/bin/$tool" "\$@"
END
        chmod +x "$toolchain/bin/$tool"
    done
}

provide_rust() {
    has_apt || return 1
    apt_update
    local packages
    mapfile -t packages < <(rust_packages)
    [ "${#packages[@]}" -gt 0 ] || return 1
    if am_root; then
        apt_install "${packages[@]}"
    else
        apt_unpack "${packages[@]}" && wrap_rust
    fi
}

# --- Python ----------------------------------------------------------------------------------------------------------

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$name" -c "import sys; sys.exit(not ($python_range))" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

makes_venvs() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }

provide_virtualenv() { # for a Python that has no ensurepip, as Debian's has not without python3-venv
    [ ! -d "$toolchain/virtualenv" ] || return 0
    local pip=(-m pip)
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        apt_unpack python3-pip-whl || return 1
        pip=("$toolchain"/root/usr/share/python-wheels/pip-*.whl)
        pip=("${pip[0]}/pip") # a wheel of pip runs as it is
    fi
    rm -rf "$toolchain/virtualenv.unfinished"
    "$python" "${pip[@]}" install --quiet --target "$toolchain/virtualenv.unfinished" virtualenv >&2 || return 1
    mv "$toolchain/virtualenv.unfinished" "$toolchain/virtualenv"
}

# --- All of it -------------------------------------------------------------------------------------------------------

mkdir -p "$toolchain"

command -v cc >/dev/null || apt_install gcc libc6-dev ||
    fail 'no C compiler (cc), which Rust links with; on Debian: apt-get install gcc libc6-dev'

rust=$(find_rust) || { provide_rust && rust=$(find_rust); } ||
    fail "no Rust $rust_min or newer; install one (by rustup, or on Debian 12: apt-get install cargo-web rustc-web)"

python=$(find_python) || { apt_install python3 python3-venv && python=$(find_python); } ||
    fail 'no Python 3.11, 3.12 or 3.13; install one, or name it: make setup PYTHON=/path/to/python3.13'

venv_module='-m venv'
if ! makes_venvs && ! { apt_install python3-venv && makes_venvs; }; then
    provide_virtualenv || fail "$python cannot make virtual environments; on Debian: apt-get install python3-venv"
    venv_module='-m virtualenv --quiet'
fi

path="$rust:\$PATH"
[ "$(command -v cargo)" != "$rust/cargo" ] || path="\$PATH"

cat >"$toolchain/env.sh" <<END
export PATH="$path"
export PYTHON="$python"
make_venv() { PYTHONPATH="$toolchain/virtualenv" "\$PYTHON" $venv_module "\$1"; }
END
say "cargo from $rust, $("$python" --version) from $python"
