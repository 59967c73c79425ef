# What a router's machine does at our word: `sh -s -- VERB ID [ARGUMENT]` with this text on its standard input, so
# that nothing of it is in a list of processes. POSIX shell; needs flock (util-linux). All that it makes is in
# ~/.tuna/ID, besides a systemd unit or two lines of the crontab, and `stop` removes every bit.
set -eu
umask 077
verb=$1
id=$2
folder=$HOME/.tuna/$id
unit=tuna-router-$id
service=/etc/systemd/system/$unit.service

fail() {
    echo "$1" >&2
    exit "${2:-1}"
}

case $id in '' | *[!0-9a-z]*) fail "$id is no deployment's id" ;; esac

# TUNA_SUPERVISED_BY=loop on the machine: neither systemd nor cron is touched there.
may_use() { [ "${TUNA_SUPERVISED_BY:-$1}" = "$1" ]; }
has_systemd() { may_use systemd && [ -d /run/systemd/system ] && sudo -n true 2>/dev/null; }
has_cron() { may_use cron && command -v crontab >/dev/null && { pgrep -x cron || pgrep -x crond; } >/dev/null 2>&1; }

# Whether this process is the folder's: a number in a file may be another's by now.
is_ours() { [ -r "/proc/$1/cmdline" ] && tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | grep -qF "$folder"; }

running() {
    [ -s "$folder/router.json" ] || return 1
    pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$folder/router.json")
    [ -n "$pid" ] && is_ours "$pid"
}

find_python() {
    for python in python3.14 python3.13 python3.12 python3.11 python3; do
        if command -v $python >/dev/null &&
            $python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v $python
            return
        fi
    done
    return 1
}

find_uv() {
    for uv in uv "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv" /usr/local/bin/uv; do
        if command -v "$uv" 2>/dev/null; then return; fi
    done
    return 1
}

install_build() {
    env=$folder/env-$1
    wheel=$(ls "$folder/wheel-$1"/*.whl)
    [ -f "$env/complete" ] && return
    rm -rf "$env"
    if python=$(find_python); then
        "$python" -m venv "$env" >&2
        "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "$wheel" >&2
    elif uv=$(find_uv); then
        # Gets a Python of its own where the machine's is too old.
        "$uv" venv --quiet --python '>=3.11' "$env" >&2
        "$uv" pip install --quiet --python "$env/bin/python" "$wheel" >&2
    else
        fail "no Python from 3.11 on with venv, and no uv" 3
    fi
    "$env/bin/python" -m tuna_router --version >"$env/complete"
}

supervise() {
    cat >"$folder/run.sh" <<'RUN'
# Keeps the supervisor of this folder's router alive. A second copy ends at once, so that cron may start it often.
cd "$(dirname "$0")" || exit 1
exec 9>>lock
flock -n 9 || exit 0
export TZ=UTC
while [ ! -e stopped ]; do
    ./current/bin/python -m tuna_router.supervise "$PWD" 9>&- >>supervisor.log 2>&1 && exit 0
    sleep 3
done
RUN
    rm -f "$folder/stopped"
    supervisor=$(cat "$folder/supervisor.pid" 2>/dev/null || true)
    if [ -n "$supervisor" ] && is_ours "$supervisor" && ! running; then
        # It is there, and waits before it tries once more.
        kill -USR2 "$supervisor"
        return
    fi
    if has_systemd; then
        echo systemd >"$folder/supervised"
        memory=$(sed -n 's/.*"memory_mb": *\([0-9]*\).*/\1/p' "$folder/launch.json")
        sudo -n tee "$service" >/dev/null <<UNIT
[Unit]
Description=Tuna's router $id
After=network-online.target
Wants=network-online.target
[Service]
User=$(id -un)
Environment=HOME=$HOME
ExecStart=/bin/sh $folder/run.sh
Restart=always
RestartSec=2
KillMode=mixed
TimeoutStopSec=60
LimitNOFILE=65536
MemoryMax=$((${memory:-1024} * 2))M
OOMScoreAdjust=500
[Install]
WantedBy=multi-user.target
UNIT
        sudo -n systemctl daemon-reload
        sudo -n systemctl enable --quiet --now "$unit"
        return
    fi
    if has_cron; then
        echo cron >"$folder/supervised"
        { without_cron_lines; echo "@reboot /bin/sh $folder/run.sh"; echo "* * * * * /bin/sh $folder/run.sh"; } | crontab -
    else
        echo loop >"$folder/supervised"
    fi
    setsid sh "$folder/run.sh" </dev/null >/dev/null 2>&1 &
}

without_cron_lines() { crontab -l 2>/dev/null | grep -vF "$folder/run.sh" || true; }

status() {
    if [ ! -d "$folder" ]; then
        echo '{"there": false}'
        return
    fi
    card=null memory=null
    if running; then
        card=$(cat "$folder/router.json")
        memory=$(awk '/^VmRSS:/ {print $2}' "/proc/$pid/status" 2>/dev/null || true)
    fi
    build=$(readlink "$folder/current" 2>/dev/null || true)
    printf '{"there": true, "card": %s, "memory_kib": %s, "build": "%s", "version": "%s", "supervised": "%s", "restarts": %s, "port": %s}\n' \
        "$card" "${memory:-null}" "${build#env-}" "$(cat "$folder/current/complete" 2>/dev/null || true)" \
        "$(cat "$folder/supervised" 2>/dev/null || true)" "$(cat "$folder/restarts" 2>/dev/null || echo 0)" \
        "$(cat "$folder/port" 2>/dev/null || echo null)"
}

case $verb in
install)
    install_build "$3"
    ;;
start)
    ln -sfn "env-$3" "$folder/current"
    running || rm -f "$folder/router.json"
    supervise
    tries=0
    until running; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ]; then
            tail -n 4 "$folder/router.log" "$folder/supervisor.log" >&2 || true
            fail "the router did not begin to listen within 30 s" 4
        fi
        sleep 0.1
    done
    status
    ;;
swap)
    old=$(readlink "$folder/current")
    rm -f "$folder/swapped"
    ln -sfn "env-$3" "$folder/current"
    supervisor=$(cat "$folder/supervisor.pid" 2>/dev/null) && is_ours "$supervisor" || fail "no supervisor runs" 5
    kill -USR2 "$supervisor"
    tries=0
    while [ ! -s "$folder/swapped" ] && [ $tries -lt 450 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    said=$(cat "$folder/swapped" 2>/dev/null || echo "its supervisor does not answer")
    if [ "$said" != ok ]; then
        ln -sfn "$old" "$folder/current"
        tail -n 4 "$folder/router.log" >&2 || true
        fail "the new router did not start: $said" 4
    fi
    # The last but one is not used any more; the last may still have streams to finish.
    for env in "$folder"/env-*; do
        case ${env##*/} in "env-$3" | "$old") ;; *) rm -rf "$env" "$folder/wheel-${env##*/env-}" ;; esac
    done
    status
    ;;
status)
    status
    ;;
config)
    cat "$folder/config.json"
    ;;
logs)
    tail -n "$3" ${4:+-F} "$folder/router.log" 2>/dev/null
    ;;
list)
    ls "$HOME/.tuna" 2>/dev/null || true
    ;;
stop)
    if [ -e "$service" ]; then
        sudo -n systemctl disable --quiet "$unit" || true
    fi
    if command -v crontab >/dev/null && crontab -l 2>/dev/null | grep -qF "$folder/run.sh"; then
        without_cron_lines | crontab -
    fi
    if [ -d "$folder" ]; then
        touch "$folder/stopped"
        supervisor=$(cat "$folder/supervisor.pid" 2>/dev/null || true)
        if [ -n "$supervisor" ] && is_ours "$supervisor"; then kill -TERM "$supervisor" || true; fi
        # The lock is free when nothing keeps the router any more.
        flock -w 30 "$folder/lock" true || true
    fi
    if [ -e "$service" ]; then
        sudo -n systemctl stop "$unit" || true
        sudo -n rm -f "$service"
        sudo -n systemctl daemon-reload
    fi
    for process in /proc/[0-9]*; do
        if [ "${process##*/}" != $$ ] && is_ours "${process##*/}"; then kill -KILL "${process##*/}" 2>/dev/null || true; fi
    done
    rm -rf "$folder"
    rmdir "$HOME/.tuna" 2>/dev/null || true
    status
    ;;
*)
    fail "unknown verb $verb"
    ;;
esac
