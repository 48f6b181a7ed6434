#!/bin/sh
# Installs @TITLE@ without a network: sh install.sh --help

@COMMON@

pythons=@PYTHONS@
glibc=@GLIBC@
check=@CHECK@
service=

usage() {
    cat <<END
usage: sh install.sh [--prefix DIR] [--python FILE] [--user-service] [--uninstall]

  --prefix DIR     the folder of this version (\$HOME/edgeship/$name/$digest);
                   the link \`current\` beside it is switched once everything works
  --python FILE    the Python to use (found: one of $pythons)
  --user-service   verify the artifact after every start of the system (systemd, as this user)
  --uninstall      remove this version

example: sh install.sh --prefix /opt/models/$name/$digest
exit codes: 0 done, 2 usage, 8 the bundle or the place is not as expected, 9 disk full,
10 no Python that fits, 20 wrong machine, 1 anything else; where the artifact or the engine
fails its check here, the code of edgeship-runtime (14: verify failed)
END
}

same() { # do two paths lead to one folder?
    [ -d "$1" ] && [ -d "$2" ] && [ "$(cd -- "$1" && pwd -P)" = "$(cd -- "$2" && pwd -P)" ]
}

while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --python)
            [ $# -ge 2 ] || fail 2 "$1 needs a value." "sh install.sh --help"
            if [ "$1" = --prefix ]; then prefix=$2; else python=$2; fi
            shift
            ;;
        --prefix=*) prefix=${1#*=} ;;
        --python=*) python=${1#*=} ;;
        --user-service) service=yes ;;
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
    [ -n "${HOME:-}" ] || fail 2 "HOME is not set, so there is no place to install to." "give --prefix DIR"
    prefix=$HOME/edgeship/$name/$digest
fi
settle
units=${XDG_CONFIG_HOME:-${HOME:-/nonexistent}/.config}/systemd/user
unit=edgeship-$name.service

release() { # the link, and the service that verifies what it leads to
    same "$current" "$prefix" || return 0
    if [ -f "$units/$unit" ] && grep -qF -- "# $current" "$units/$unit"; then
        systemctl --user stop "$unit" 2>/dev/null || :
        rm -f -- "$units/$unit" "$units/default.target.wants/$unit"
        systemctl --user daemon-reload 2>/dev/null || :
    fi
    rm -f -- "$current"
    printf 'removed %s\n' "$current"
}

if [ -n "$uninstall" ]; then
    remove
    exit 0
fi

# What can be refused is refused before anything is written.

[ "$(uname -s)" = "$system" ] ||
    fail 20 "this bundle is for $system, and this is $(uname -s). Nothing was installed." \
        "make a bundle for this machine: edgeship bundle ... --device ..."
machine=$(uname -m)
case $machine in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
esac
[ "$machine" = "$arch" ] ||
    fail 20 "this bundle is for $arch ($device), and this machine is $machine. Nothing was installed." \
        "make a bundle for this machine: edgeship bundle ... --device ..."
if [ "$system" = Linux ] && { [ "$(uname -o 2>/dev/null)" = Android ] || [ -n "${TERMUX_VERSION:-}" ]; }; then
    fail 20 "this is Android, whose C library does not load the wheels of this bundle (numpy and all with compiled code). Nothing was installed." \
        "edgeship bundle ARTIFACT --device android-flagship makes one whose install.sh works in Termux and over adb"
fi
if [ ! -f "$here/bundle.json" ] || [ ! -f "$here/wheels/$pip" ]; then
    fail 8 "$here: the files of the bundle are not here. Nothing was installed." "run install.sh inside the unpacked bundle"
fi
check_link
if [ -n "$service" ]; then
    [ -n "$has_artifact" ] || fail 2 "this bundle has no artifact for a service to verify." "leave out --user-service"
    command -v systemctl >/dev/null || fail 2 "this system has no systemd. Nothing was installed." "leave out --user-service"
fi

seen=
chosen=
# shellcheck disable=SC2046,SC2086 # the versions are words
if [ -n "$python" ]; then set -- "$python"; else set -- $(printf 'python%s ' $pythons) python3 python; fi
for candidate; do
    path=$(command -v -- "$candidate" 2>/dev/null) || continue
    version=$("$path" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case " $pythons " in
        *" $version "*)
            chosen=$path
            break
            ;;
    esac
    case $seen in *"$path "*) ;; *) seen="$seen${seen:+, }$path (Python $version)" ;; esac
done
[ -n "$chosen" ] ||
    fail 10 "this bundle is for Python $pythons; found ${seen:-no Python 3}. Nothing was installed." \
        "install one of these versions, name one with --python FILE, or make a bundle for a device with yours"
python=$chosen

probe=$("$python" -I -c '
import os, shutil, struct, sys
try:
    import venv
    module = "venv"
except ImportError:
    module = "none"
libc = "none"
try:
    kind, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    libc = version if kind == "glibc" else "none"
except (AttributeError, OSError, ValueError):
    pass
place = sys.argv[1]
while not os.path.isdir(place):
    place = os.path.dirname(place)
enough = [int(n) for n in libc.split(".")] >= [int(n) for n in (sys.argv[2] or "0").split(".")] if libc != "none" else not sys.argv[2]
print(struct.calcsize("P") * 8, module, libc, "yes" if enough else "no", shutil.disk_usage(place).free // 1000000)
' "$prefix" "$glibc") || fail 10 "$python does not run. Nothing was installed." "name another one with --python FILE"
# shellcheck disable=SC2086 # the answer is words
set -- $probe
[ "$1" = 64 ] ||
    fail 20 "$python is a $1-bit program, and the wheels are for $arch. Nothing was installed." "use a 64-bit system"
[ "$2" = venv ] ||
    fail 10 "$python has no module venv. Nothing was installed." "install it (Debian: apt install python3-venv), or give --python FILE"
[ "$4" = yes ] ||
    fail 20 "this bundle needs glibc $glibc or newer; found $3. Nothing was installed." "use a newer system"

check_prefix
[ -n "$present" ] || [ "$5" -ge "$needs" ] ||
    fail 9 "installing takes $needs MB, and $5 MB are free at $prefix. Nothing was installed." \
        "free some space, or give a --prefix on another disk"

check_bundle() {
    printf 'checking the bundle\n'
    "$python" -I -c '
import hashlib, json, os, sys
here = sys.argv[1]
with open(os.path.join(here, "bundle.json"), encoding="utf-8") as file:
    files = json.load(file)["files"]
for name, entry in sorted(files.items()):
    if name.startswith("artifact/"):
        continue  # the runtime verifies these
    try:
        with open(os.path.join(here, *name.split("/")), "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
    except OSError as error:
        sys.exit("%s: %s" % (name, error.strerror))
    if found != entry["sha256"]:
        sys.exit("%s: its bytes are not those of the bundle" % name)
' "$here" || fail 8 "$here: the bundle is damaged." "copy it to this machine again"
}

install() {
    begin
    printf 'making a Python environment with %s\n' "$python"
    "$python" -I -m venv --without-pip "$prefix/venv" ||
        { full && fail 10 "$python cannot make an environment." "install its module venv (Debian: apt install python3-venv)"; }
    printf 'installing the wheels\n'
    TMPDIR=$prefix/tmp "$prefix/venv/bin/python" -I "$here/wheels/$pip/pip" --isolated install --quiet \
        --no-index --find-links "$here/wheels" --require-hashes --no-deps --no-compile --no-cache-dir --no-input \
        --disable-pip-version-check --requirement "$here/requirements.txt" ||
        { full && fail 1 "the wheels could not be installed." "the lines above say why"; }
    if [ -n "$has_artifact" ]; then
        printf 'copying the artifact\n'
        cp -R -- "$here/artifact" "$prefix/artifact" || { full && fail 8 "the artifact could not be copied." "the lines above say why"; }
    fi
    rm -rf -- "$prefix/tmp"
}

stopped() { # code, what was found, hint
    if [ "$1" -gt 128 ]; then
        fail 12 "the engine was killed by signal $(($1 - 128)); 4 is an instruction that this processor does not have." "$another"
    fi
    full
    fail "$1" "$2." "$3"
}

run() {
    "$prefix/venv/bin/python" -I "$@" || stopped $? "the engine or the artifact failed its check here" "the lines above say why"
}

examine() { # the doctor finds wheels for another processor, which import and crash later
    code=0
    told=$("$prefix/venv/bin/python" -I -m edgeship_runtime doctor) || code=$?
    printf '%s\n' "$told"
    [ "$code" -eq 0 ] && return
    wrong=$(printf '%s\n' "$told" | sed -n '/^error: /{s///p;q;}')
    stopped "$code" "${wrong:-the doctor failed here}" "$another"
}

guard
another="make a bundle for this device: edgeship bundle ... --device ..."
check_bundle
[ -n "$present" ] || install
printf 'checking the engine\n'
[ -n "$has_artifact" ] || run -c "$check"
examine
if [ -n "$has_artifact" ]; then
    printf 'verifying the artifact\n'
    run -m edgeship_runtime verify "$prefix/artifact"
fi
finish
"$python" -I -c 'import os, sys; os.symlink(sys.argv[1], sys.argv[2]); os.replace(sys.argv[2], sys.argv[3])' \
    "${prefix##*/}" "$base/.current.$$" "$current" ||
    fail 8 "$prefix is installed, but $current could not be switched to it." "check the rights of $base"

if [ -n "$service" ]; then
    # In a unit % begins a specifier, and \ and " end or escape a word.
    quoted=$(printf '%s' "$current" | sed 's/[\\"]/\\&/g; s/%/%%/g')
    mkdir -p -- "$units/default.target.wants"
    cat >"$units/$unit" <<END
# $current
[Unit]
Description=edgeship: $name is intact and answers as it should

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart="$quoted/venv/bin/python" -I -m edgeship_runtime verify "$quoted/artifact"

[Install]
WantedBy=default.target
END
    ln -sf -- "../$unit" "$units/default.target.wants/$unit"
    systemctl --user daemon-reload 2>/dev/null || :
    printf 'service: systemctl --user status %s (without a login after a start: loginctl enable-linger)\n' "$unit"
fi

printf 'installed %s\n' "$prefix"
if [ -n "$has_artifact" ]; then
    printf 'run it:   "%s/venv/bin/edgeship-runtime" run "%s/artifact" "Hello"\n' "$current" "$current"
else
    printf 'run it:   "%s/venv/bin/edgeship-runtime" run ARTIFACT "Hello"\n' "$current"
fi
