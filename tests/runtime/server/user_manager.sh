# Runs a command beside a systemd user manager of its own, in a mount namespace of its own; needs root.
# usage: unshare --mount bash user_manager.sh FOLDER COMMAND...
set -eu
folder=$1
shift
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user/0 "$folder/config"
chmod 700 /run/user/0
export XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME=$folder/config DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/0/bus
export SYSTEMD_LOG_TARGET=console
/lib/systemd/systemd --user > "$folder/manager.log" 2>&1 &
manager=$!
trap 'kill -RTMIN+24 $manager; wait $manager' EXIT
for _ in $(seq 100); do
  systemctl --user is-system-running > "$folder/state" 2> "$folder/why" && break
  sleep 0.1
done
"$@"
