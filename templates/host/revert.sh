#!/bin/sh
# Written by minipc (templates/host/revert.sh). Takes back a change that could lock everybody out, unless the controller
# confirms it over a new connection.
#   keep NAME PATH...   before files are replaced: remembers each as it is, and starts the clock: some (who may log in)
#                       take effect at once
#   arm NAME UNDO       before the change takes effect: the clock begins anew; UNDO is a shell command
#   confirm NAME        over a new connection: the change stays
#   undo NAME           the clock has run out: the files as they were, then UNDO
#   boot                before services start: what was never confirmed before the machine went down is taken back
set -eu
umask 077
STATE=/var/lib/minipc/revert
BOOT_ID=/proc/sys/kernel/random/boot_id
verb=$1
name=${2:-}
change=$STATE/$name
mkdir -p "$STATE"
exec 9> /run/minipc-revert.lock
flock 9

keep() {
    mkdir -p "$change"
    touch "$change/paths"
    for path; do
        # What was there before an earlier, unconfirmed change is what is known to be good.
        grep -qxF -- "$path" "$change/paths" && continue
        # The copy's name is the number of its line.
        [ ! -e "$path" ] || cp -a -- "$path" "$change/$(($(wc -l < "$change/paths") + 1))"
        echo "$path" >> "$change/paths"
    done
    cat "$BOOT_ID" > "$change/boot"
    sync -f "$change"
    touch "$change/kept"
    systemctl restart "minipc-revert@$name.timer"
}

restore() {
    number=0
    while read -r path; do
        number=$((number + 1))
        if [ -e "$1/$number" ]; then
            cp -a -- "$1/$number" "$path.minipc-old"
            mv -fT -- "$path.minipc-old" "$path"
        else
            rm -f -- "$path"
        fi
    done < "$1/paths"
    sync
}

case $verb in
keep)
    shift 2
    keep "$@"
    ;;
arm)
    echo "$3" > "$change/undo"
    systemctl restart "minipc-revert@$name.timer"
    ;;
confirm)
    if [ ! -e "$change/kept" ]; then
        echo "$name: nothing waits for confirmation; was it too late?" >&2
        exit 1
    fi
    systemctl stop "minipc-revert@$name.timer"
    rm -rf -- "$change"
    ;;
undo)
    [ -e "$change/kept" ] || exit 0
    echo "$name: nobody confirmed the change; the files are as they were before it"
    restore "$change"
    [ ! -e "$change/undo" ] || sh "$change/undo"
    rm -rf -- "$change"
    ;;
boot)
    restored=
    for each in "$STATE"/*/; do
        [ -e "$each/kept" ] || continue
        cmp -s "$BOOT_ID" "$each/boot" && continue
        echo "$each: never confirmed; the files are as they were before it"
        restore "${each%/}"
        rm -rf -- "$each"
        restored=yes
    done
    # Units were read before this one ran.
    [ -z "$restored" ] || systemctl daemon-reload
    ;;
*)
    echo "usage: revert keep|arm|confirm|undo|boot ..." >&2
    exit 2
    ;;
esac
