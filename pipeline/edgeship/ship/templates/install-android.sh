#!/bin/sh
# Installs @TITLE@ on Android without a network, in Termux or over adb: sh install.sh --help

@COMMON@

sums=@SUMS@
tmp=/data/local/tmp
no_python=

usage() {
    cat <<END
usage: sh install.sh [--prefix DIR] [--python FILE | --no-python] [--uninstall]

  --prefix DIR     the folder of this version (edgeship/$name/$digest in \$HOME, without one in $tmp);
                   the link \`current\` beside it is switched once everything works
  --python FILE    the Python for edgeship-runtime (Termux: python)
  --no-python      the native runner alone
  --uninstall      remove this version

The native runner needs nothing. edgeship-runtime, with its server, is added where Termux's Python and numpy are:
  pkg install python python-numpy
exit codes: 0 done, 2 usage, 8 the bundle or the place is not as expected, 9 disk full, 20 wrong machine,
1 anything else; where the artifact fails its check here, the code of the runner (14: verify failed)
END
}

while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --python)
            [ $# -ge 2 ] || fail 2 "$1 needs a value." "sh install.sh --help"
            if [ "$1" = --prefix ]; then prefix=$2; else python=$2; fi
            shift
            ;;
        --no-python) no_python=yes ;;
        --uninstall) uninstall=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail 2 "unknown argument: $1" "sh install.sh --help" ;;
    esac
    shift
done

here=$(cd -- "$(dirname -- "$0")" && pwd -P)
if [ -z "$prefix" ]; then
    home=${HOME:-}
    # adb's own user has no home, and one place where programs may lie.
    if [ -z "$home" ] || [ "$home" = / ] || [ ! -w "$home" ]; then home=$tmp; fi
    prefix=$home/edgeship/$name/$digest
fi
settle

release() { # the link
    [ "$(readlink "$current" 2>/dev/null)" = "${prefix##*/}" ] || return 0
    rm -f "$current"
    printf 'removed %s\n' "$current"
}

if [ -n "$uninstall" ]; then
    remove
    exit 0
fi

# What can be refused is refused before anything is written.

machine=$(uname -m)
case $machine in arm64) machine=aarch64 ;; esac
if [ "$(uname -s)" != "$system" ] || [ "$machine" != "$arch" ]; then
    fail 20 "this bundle is for Android on $arch ($device), and this is $(uname -s) on $machine. Nothing was installed." \
        "make a bundle for this machine: edgeship bundle ... --device ..."
fi
for each in bundle.json runner/edgeship-runner "wheels/$pip"; do
    [ -f "$here/$each" ] ||
        fail 8 "$here: $each is not here. Nothing was installed." "run install.sh inside the unpacked bundle"
done
check_link
printf 'checking the bundle\n'
printf '%s\n' "$sums" | while read -r want file; do # not sha256sum -c: toybox reads no list from a pipe
    got=$(sha256sum <"$here/$file") || got=
    [ "${got%% *}" = "$want" ] || {
        printf '%s: its bytes are not those of the bundle\n' "$file" >&2
        exit 1
    }
done ||
    fail 8 "$here: the bundle is damaged: the lines above name the files." "copy it to this machine again"

check_prefix
guard

runner=$prefix/runner/edgeship-runner
if [ -z "$present" ]; then
    begin
    for each in runner ${has_artifact:+artifact}; do
        printf 'copying the %s\n' "$each"
        cp -R "$here/$each" "$prefix/$each" || { full && fail 8 "the $each could not be copied." "the lines above say why"; }
    done
    chmod 755 "$prefix"/runner/edgeship-runner*
fi
"$runner" --help >/dev/null 2>&1 ||
    fail 8 "$runner: programs cannot run at this place." "give a --prefix in Termux's home or in $tmp: shared storage allows none"
"$runner" doctor || fail $? "this machine cannot run it." "the lines above say why"
if [ -n "$has_artifact" ]; then
    printf 'verifying the artifact\n'
    "$runner" verify "$prefix/artifact" || fail $? "the artifact failed its check here." "the lines above say why"
fi

why= # there is no edgeship-runtime; empty where there is
runtime() { # beside the runner, where a Python with numpy is: wheels for Linux do not load with Android's C library
    why='it was not asked for'
    [ -z "$no_python" ] || return 0
    path=$(command -v "${python:-python3}" 2>/dev/null) || path=
    why='there is no Python (Termux: pkg install python python-numpy, then run this again)'
    [ -n "$path" ] || return 0
    why="$path is older than Python 3.11 (Termux: pkg upgrade, then run this again)"
    "$path" -I -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || return 0
    why="$path has no numpy (Termux: pkg install python-numpy, then run this again)"
    "$path" -I -c 'import numpy' 2>/dev/null || return 0
    printf 'adding edgeship-runtime to %s\n' "$path"
    rm -rf "$prefix/venv"
    why='its installation failed: the lines above say why'
    "$path" -I -m venv --system-site-packages --without-pip "$prefix/venv" || return 0
    mkdir -p "$prefix/tmp"
    TMPDIR=$prefix/tmp "$prefix/venv/bin/python" -I "$here/wheels/$pip/pip" --isolated install --quiet --no-index \
        --ignore-installed --find-links "$here/wheels" --require-hashes --no-deps --no-compile --no-cache-dir --no-input \
        --disable-pip-version-check --requirement "$here/requirements.txt" || return 0
    rm -rf "$prefix/tmp"
    "$prefix/venv/bin/python" -I -c 'import edgeship_runtime.model, jinja2' || return 0
    why=
}
runtime
[ -z "$why" ] || rm -rf "$prefix/venv" "$prefix/tmp"

finish
ln -sfn "${prefix##*/}" "$current" ||
    fail 8 "$prefix is installed, but $current could not be switched to it." "check the rights of $base"

printf 'installed %s\n' "$prefix"
[ -z "$has_artifact" ] || printf 'run it:   "%s/runner/edgeship-runner" generate "%s/artifact" --text "Hello"\n' "$current" "$current"
if [ -n "$why" ]; then
    printf 'edgeship-runtime was not added: %s\n' "$why"
elif "$prefix/venv/bin/python" -I -c 'from edgeship_runtime.engines.llama_library import library; library()' 2>/dev/null; then
    printf 'or:       "%s/venv/bin/edgeship-runtime" run "%s/artifact" "Hello"\n' "$current" "$current"
else
    printf 'edgeship-runtime was added, and has no engine yet. The registry has no wheel of llama.cpp or onnxruntime that\n'
    printf 'loads here; with a network, in Termux (some minutes):\n'
    printf '  pkg install clang cmake ninja &&\n  "%s/venv/bin/python" -m ensurepip &&\n' "$current"
    printf '  "%s/venv/bin/python" -m pip install llama-cpp-python\n' "$current"
fi
