set -eu
umask 022
LC_ALL=C
PIP_CONFIG_FILE=/dev/null
export LC_ALL PIP_CONFIG_FILE
unset CDPATH PYTHONPATH PYTHONHOME PYTHONSTARTUP

name=@NAME@
digest=@DIGEST@
device=@DEVICE@
system=@SYSTEM@
arch=@ARCH@
needs=@NEEDS@
pip=@PIP@
has_artifact=@HAS_ARTIFACT@

installed=.edgeship-installed
half=.edgeship-half
prefix=
python=
uninstall=
made=
present=

fail() { # code, message, hint
    printf 'error: %s\n\nhint: %s\n' "$2" "$3" >&2
    exit "$1"
}

settle() { # prefix: absolute, and a folder of its own; base and current lie around it
    case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
    while [ "$prefix" != "${prefix%/}" ]; do prefix=${prefix%/}; done
    case ${prefix##*/} in
        '' | . | .. | current) fail 2 "--prefix has to name a folder of its own, not ${prefix:-/}." "sh install.sh --help" ;;
    esac
    base=${prefix%/*}
    base=${base:-/}
    current=$base/current
}

remove() { # release, each installer's own, takes the link away
    [ -f "$prefix/$installed" ] || [ -f "$prefix/$half" ] ||
        fail 8 "$prefix: nothing is installed here; nothing was removed." "give the --prefix it was installed with"
    release
    # Marked as half first: what a cut leaves behind, the next installation clears away.
    [ ! -f "$prefix/$installed" ] || mv -f "$prefix/$installed" "$prefix/$half"
    rm -rf "$prefix"
    rmdir "$base" 2>/dev/null || :
    printf 'removed %s\n' "$prefix"
}

check_link() {
    if [ -e "$current" ] && [ ! -L "$current" ]; then
        fail 8 "$current: expected a link or nothing, found something else. Nothing was installed." "give another --prefix"
    fi
}

check_prefix() { # present: this version is installed; else nothing lies there afterwards
    [ ! -f "$prefix/$half" ] || rm -rf "$prefix" # what an installation that was cut short has left
    if [ -f "$prefix/$installed" ]; then
        [ "$(cat "$prefix/$installed")" = "$digest" ] ||
            fail 8 "$prefix: another version is installed here. Nothing was changed." \
                "give another --prefix, or remove that version with the install.sh of its own bundle"
        present=yes
    elif [ -e "$prefix" ] && ! rmdir "$prefix" 2>/dev/null; then
        fail 8 "$prefix: exists and is no installation of edgeship. Nothing was changed." "give another --prefix"
    fi
}

# shellcheck disable=SC2317 # run by the trap
cleanup() {
    status=$?
    trap - EXIT
    rm -f "$base/.current.$$" 2>/dev/null || :
    if [ -n "$made" ]; then
        rm -rf "$prefix"
        rmdir "$base" 2>/dev/null || :
        printf 'Nothing was installed: what was begun is removed, and %s is as it was.\n' "$current" >&2
    fi
    exit "$status"
}

guard() { # from here on an end of any kind leaves nothing half
    trap cleanup EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM
}

full() { # after a failed step: say so where the disk is the reason
    left=$(df -Pk "$base" 2>/dev/null | tail -n 1 | while read -r _ _ _ free _; do echo "$free"; done) || left=
    case $left in '' | *[!0-9]*) return ;; esac
    [ "$left" -ge 1024 ] || fail 9 "the disk of $base is full." "free $needs MB, or give a --prefix on another disk"
}

begin() {
    { mkdir -p "$base" && mkdir "$prefix"; } || fail 8 "$prefix: cannot be made." "give a --prefix that you may write to"
    made=yes
    { printf '%s\n' "$digest" >"$prefix/$half" && mkdir "$prefix/tmp"; } ||
        { full && fail 8 "$prefix: cannot be written." "give another --prefix"; }
}

finish() {
    if [ -z "$present" ]; then
        sync # a power cut must not leave a version that is named but not written
        mv -f "$prefix/$half" "$prefix/$installed"
    fi
    made=
}
