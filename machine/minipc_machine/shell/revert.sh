#!/bin/sh
# Written by minipc (machine/minipc_machine/shell/revert.sh). Undoes a change that could lock everybody out, unless the
# controller confirms it over a new connection.
#   keep NAME PATH...   before files are replaced: save each of them, and start the clock, because some files (who may
#                       log in) take effect at once
#   arm NAME UNDO       before the change takes effect: restart the clock; UNDO is a shell command
#   confirm NAME        over a new connection: keep the change
#   undo NAME           the clock has run out: restore the files, then run UNDO
#   boot                before services start: undo changes that were not confirmed before the machine went down
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
        # After an earlier, unconfirmed change only the state before that one is known to be good.
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
        echo "$name: no change is waiting for confirmation; was it too late?" >&2
        exit 1
    fi
    systemctl stop "minipc-revert@$name.timer"
    rm -rf -- "$change"
    ;;
undo)
    [ -e "$change/kept" ] || exit 0
    echo "$name: the change was not confirmed; the files were restored"
    restore "$change"
    [ ! -e "$change/undo" ] || sh "$change/undo"
    rm -rf -- "$change"
    ;;
boot)
    restored=
    for each in "$STATE"/*/; do
        [ -e "$each/kept" ] || continue
        cmp -s "$BOOT_ID" "$each/boot" && continue
        echo "$each: the change was not confirmed; the files were restored"
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
