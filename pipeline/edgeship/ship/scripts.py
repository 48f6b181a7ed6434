"""What runs on the board beside the bundle's own programs: short POSIX shell, its arguments never part of the text."""

from __future__ import annotations

BOOT = "cat /proc/sys/kernel/random/boot_id 2>/dev/null; exit 0"

INSTALLED = """
[ "$(cat -- "$1/.edgeship-installed" 2>/dev/null)" = "$2" ] && [ -x "$1/venv/bin/python" ] &&
[ "$(readlink -- "$(dirname -- "$1")/current")" = "$(basename -- "$1")" ]
"""

# An installer whose connection broke may still run; it cleans up after itself when it is told to end.
INSTALL = r"""
running=$1
shift
mkdir -p -- "$(dirname -- "$running")" || exit
old=$(cat -- "$running" 2>/dev/null) || old=none
case $(tr '\0' ' ' < "/proc/$old/cmdline" 2>/dev/null) in *install.sh*)
  kill "$old" 2>/dev/null
  waited=0
  while kill -0 "$old" 2>/dev/null; do
    [ "$waited" -lt 120 ] || { echo 'error: an earlier installation still runs there.' >&2; exit 1; }
    sleep 1
    waited=$((waited + 1))
  done ;;
esac
echo $$ > "$running"
exec "$@"
"""

# The pushed files become links to the installed ones where they are equal: the weights lie there once.
LINK = """
cd -- "$1" || exit 0
there=$OLDPWD/$2
find . -type f | while IFS= read -r f; do
  cmp -s -- "$f" "$there/$f" && ln -- "$f" "$there/$f.linked" 2>/dev/null && mv -f -- "$there/$f.linked" "$there/$f"
done
exit 0
"""

AS_BEFORE = 75
"""Exit code of DOCTOR for an answer from earlier."""

# Keeps the answer beside the board's start it is from; one that found an error is asked again.
DOCTOR = f"""
answer=$1 boot=$2
shift 2
if [ -n "$boot" ] && [ "$(cat -- "$answer.boot" 2>/dev/null)" = "$boot" ]; then cat -- "$answer" && exit {AS_BEFORE}; fi
rm -f -- "$answer.boot"
"$@" > "$answer"
code=$?
cat -- "$answer"
[ "$code" != 0 ] || printf '%s' "$boot" > "$answer.boot"
exit $code
"""

# A measurement whose connection broke may still run, and would slow down the next one.
MEASURE = r"""
answer=$1
shift
here=$(dirname -- "$answer")
mkdir -p -- "$here" || exit
if old=$(cat -- "$here/running" 2>/dev/null); then
  case $(tr '\0' ' ' < "/proc/$old/cmdline" 2>/dev/null) in *edgeship_runtime*) kill -9 "$old" ;; esac
fi
"$@" > "$answer.part" &
echo $! > "$here/running"
wait $!
code=$?
rm -f -- "$here/running"
mv -f -- "$answer.part" "$answer"
for each in /sys/class/thermal/thermal_zone*/temp; do
  read -r value < "$each" && echo "millidegrees=$value"
done 2>/dev/null
for each in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq; do
  read -r value < "$each" && echo "khz=$value"
done 2>/dev/null
command -v vcgencmd >/dev/null 2>&1 && vcgencmd get_throttled 2>/dev/null
exit $code
"""

# Versions are folders named by twelve hex digits; the one in use, and whatever else lies there, stays.
PRUNE = r"""
cd -- "$1" || exit 0
root=$PWD
for base in "$root/$2" "$root/.bundles/$2"; do
  current=$(readlink -- "$base/current" 2>/dev/null)
  for each in "$base"/????????????; do
    version=${each##*/}
    case $version in *[!0-9a-f]*) continue ;; esac
    [ -d "$each" ] && [ ! -L "$each" ] || continue
    [ "$version" = "$3" ] || [ "$version" = "${current##*/}" ] && continue
    rm -rf -- "$each" && echo "$version" || exit 1
  done
done
"""


def is_sensor(text: str) -> bool:
    """Whether a line is what MEASURE says of a sensor."""
    return text.startswith(("millidegrees=", "khz=", "throttled="))
