"""What runs on the board beside the bundle's own programs: short POSIX shell, its arguments never part of the text."""

from __future__ import annotations

ROOT = "edgeship"  # under the home directory on the board, as in install.sh

LOCK_HELD = 75
"""Exit code of LOCK where another validation is at work; it prints the lock's text."""
LOCK_LOST = 76
"""Exit code of a command that begins with `kept` where the lock is another's by now."""
LOCK_MINUTES = 3

# The lock is a symbolic link that leads nowhere: made with its text (TOKEN:BOOT:WHO) in one operation, or not at all.
# It holds while the board has not been started again, and a command of its holder runs there or ran lately. $3 is the
# token of a holder that is known to have ended. One at a time removes a lock to take it over, and looks at it again.
LOCK = f"""
lock={ROOT}/.lock beat={ROOT}/.lock-beat
mkdir -p -- {ROOT} || exit
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
tries=0
until ln -s -- "$1:$boot:$2" "$lock" 2>/dev/null; do
  tries=$((tries + 1))
  [ "$tries" -lt 10 ] || {{ ln -s -- "$1:$boot:$2" "$lock"; exit; }}
  there=$(readlink -- "$lock") || continue
  rest=${{there#*:}}
  if [ "${{rest%%:*}}" = "$boot" ]; then
    [ "${{there%%:*}}" != "$1" ] || break
    if [ "${{there%%:*}}" != "$3" ]; then
      pid=$(cat -- "$beat" 2>/dev/null)
      case $(tr '\\0' ' ' 2>/dev/null < "/proc/${{pid:-none}}/cmdline") in
        *{ROOT}*) printf '%s\\n' "$there"; exit {LOCK_HELD} ;;
      esac
      lately=$(find "$beat" "$lock" -mmin -{LOCK_MINUTES} 2>/dev/null)
      [ -z "$lately" ] || {{ printf '%s\\n' "$there"; exit {LOCK_HELD}; }}
    fi
  fi
  if mkdir -- "$lock-taking" 2>/dev/null; then
    [ "$(readlink -- "$lock")" != "$there" ] || rm -f -- "$lock"
    rmdir -- "$lock-taking"
  else
    sleep 1
    find "$lock-taking" -prune -mmin +1 -exec rmdir {{}} \\; 2>/dev/null
  fi
done
{{ echo $$ > "$beat"; }} 2>/dev/null
printf '%s\\n' "$boot"
shift 3
"""

UNLOCK = f"""
case $(readlink -- {ROOT}/.lock 2>/dev/null) in "$1":*) rm -f -- {ROOT}/.lock {ROOT}/.lock-beat ;; esac
exit 0
"""


def kept(token: str) -> str:
    """The beginning of a script that runs only while the lock is `token`'s, and says that its holder is alive."""
    return f"""case $(readlink -- {ROOT}/.lock 2>/dev/null) in {token}:*) ;; *) exit {LOCK_LOST} ;; esac
{{ echo $$ > {ROOT}/.lock-beat; }} 2>/dev/null
"""


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
case $(tr '\0' ' ' 2>/dev/null < "/proc/$old/cmdline") in *install.sh*)
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

# Keeps the answer beside the board's start it is from; one that found an error is asked again.
DOCTOR = """
answer=$1 boot=$2
shift 2
mkdir -p -- "$(dirname -- "$answer")" && rm -f -- "$answer.boot"
"$@" > "$answer"
code=$?
cat -- "$answer"
[ "$code" != 0 ] || printf '%s' "$boot" > "$answer.boot"
exit $code
"""

# The answer of a verify that passed, and what it is of: files, engine, runtime and the board's start.
KEEP = """
printf '%s\\n%s\\n' "$2" "$3" > "$1.for.part" && mv -f -- "$1.for.part" "$1.for"
"""

# The sums of all files in $1, and the bytes of those that are there in part.
SUM = """LC_ALL=C; export LC_ALL
sum() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }
"""
PARTS = ".parts"
LIST = f"""{SUM}cd -- "$1" 2>/dev/null || exit 0
if command -v sha256sum >/dev/null; then set -- sha256sum; else set -- shasum -a 256; fi
find . -type f ! -path './{PARTS}/*' -exec "$@" {{}} + || exit
for f in {PARTS}/*; do [ -f "$f" ] && echo "part $(wc -c < "$f") $f"; done
exit 0
"""

# What is known of a version that is installed, each part after a line of its own with a word that the board cannot
# guess: sums of what was pushed, the doctor's answer since the board was started, and the answer of a verify that was
# of the same, with sums of the installed files. One that is one file with its pushed copy is not read twice.
KNOWN = f"""
mark=$1 bundle=$2 doctor=$3 boot=$4 verify=$5 same=$6 installed=$7
printf '\n%s list\n' "$mark"
(set -- "$bundle"
{LIST})
printf '\n%s doctor\n' "$mark"
[ -n "$boot" ] && [ "$(cat -- "$doctor.boot" 2>/dev/null)" = "$boot" ] && cat -- "$doctor"
{{ read -r what && read -r time; }} 2>/dev/null < "$verify.for"
[ -n "$same" ] && [ "$what" = "$same" ] || exit 0
printf '\n%s sums\n' "$mark"
({SUM}home=$PWD
cd -- "$installed" && find . -type f | while IFS= read -r f; do
  if [ "$f" -ef "$home/$bundle/artifact/$f" ]; then printf 'same  %s\n' "$f"; else sum "$f"; fi
done)
printf '\n%s verify\n%s\n' "$mark" "$time"
cat -- "$verify"
exit 0
"""

# What says how much power is drawn: current and voltage of rails, batteries that are not charging, and counters of
# energy. $sys is where the kernel shows its devices; the firmware of a Raspberry Pi 5 knows its rails itself.
_POWER = r"""
label() { read -r name < "$1" || name=$2; }
power() {
  for chip in "$sys"/class/hwmon/hwmon*; do
    label "$chip/name" hwmon; of=$name
    for each in "$chip"/power[0-9]*_input "$chip"/power[0-9]*_average; do
      read -r value < "$each" || continue
      label "${each%_*}_label" "${each##*/}"; echo "microwatts=$value $of $name"
    done
    for each in "$chip"/curr[0-9]*_input; do
      n=${each##*/curr}; n=${n%_input}
      [ ! -r "$chip/power${n}_input" ] && read -r amps < "$each" && read -r volts < "$chip/in${n}_input" || continue
      label "$chip/in${n}_label" "rail $n"; echo "microwatts=$((amps * volts)) $of $name"
    done
  done
  for each in "$sys"/class/power_supply/*; do
    read -r value < "$each/status" && [ "$value" = Discharging ] || continue
    if read -r value < "$each/power_now"; then echo "microwatts=$value ${each##*/}"
    elif read -r amps < "$each/current_now" && read -r volts < "$each/voltage_now"; then
      amps=${amps#-}; echo "microwatts=$((amps / 1000 * (volts / 1000))) ${each##*/}"
    fi
  done
  [ -n "$pmic" ] && vcgencmd pmic_read_adc | while read -r rail value; do echo "pmic=$rail $value"; done
}
energy() {
  read -r up _ < /proc/uptime && echo "uptime=$up"
  for each in "$sys"/class/powercap/*-rapl:?; do
    read -r value < "$each/energy_uj" && read -r most < "$each/max_energy_range_uj" || continue
    label "$each/name" "${each##*/}"; echo "microjoules=$value $most RAPL $name"
  done
  for each in "$sys"/class/hwmon/hwmon*/energy[0-9]*_input; do
    read -r value < "$each" || continue
    label "${each%/*}/name" hwmon; of=$name; label "${each%_*}_label" "${each##*/}"
    echo "microjoules=$value 0 $of $name"
  done
}
"""

# A measurement whose connection broke may still run, and would slow down the next one. Power is asked every second,
# by a loop that ends with the program; where nothing says it there is no loop.
MEASURE = (
    _POWER
    + r"""
answer=$1 sys=$2
shift 2
here=$(dirname -- "$answer")
mkdir -p -- "$here" || exit
if old=$(cat -- "$here/running" 2>/dev/null); then
  case $(tr '\0' ' ' 2>/dev/null < "/proc/$old/cmdline") in *edgeship_runtime*|*edgeship-runner*) kill -9 "$old" ;; esac
fi
rm -f -- "$answer.for"
pmic=
command -v vcgencmd >/dev/null 2>&1 && case $(vcgencmd pmic_read_adc 2>/dev/null) in *current*) pmic=yes ;; esac
any=$(power 2>/dev/null)
energy 2>/dev/null
"$@" > "$answer.part" &
program=$!
echo $program > "$here/running"
if [ -n "$any" ]; then
  { while sleep 1 && kill -0 "$program"; do echo tick=; power; done; } > "$answer.power" 2>/dev/null < /dev/null &
fi
wait "$program"
code=$?
energy 2>/dev/null
[ -z "$any" ] || { tail -n 8000 -- "$answer.power"; rm -f -- "$answer.power"; }
rm -f -- "$here/running"
mv -f -- "$answer.part" "$answer"
echo "boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
for each in "$sys"/class/thermal/thermal_zone*/temp; do
  read -r value < "$each" && echo "millidegrees=$value"
done 2>/dev/null
for each in "$sys"/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq; do
  read -r value < "$each" && echo "khz=$value"
done 2>/dev/null
command -v vcgencmd >/dev/null 2>&1 && vcgencmd get_throttled 2>/dev/null
echo answer:
cat -- "$answer"
exit $code
"""
)
ANSWER = "answer:"
"""The line after which MEASURE prints the answer of its program, and nothing else."""

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
    return text.startswith(_SENSORS)


_SENSORS = (
    *("millidegrees=", "khz=", "throttled=", "boot="),
    *("microwatts=", "microjoules=", "uptime=", "pmic=", "tick="),
)
