#!/bin/sh
# Written by minipc (templates/offsite/offsite-copy.sh). Usage: offsite-copy DAYS
#
# A copy of pgBackRest's repository that the account of the mini PC can't reach. Its own files, never hard links into
# the repository: the account could write through those. Unchanged files are hard links between copies.
# Copies older than DAYS go, unless the repository has lost its newest backup: then nothing goes, and this fails.
set -eu
days=$1
repository=/srv/minipc-offsite/sftp/pgbackrest
copies=/srv/minipc-offsite/copies

newest_backup() {
    find "$1/backup" -mindepth 2 -maxdepth 2 -type d -name '[0-9]*-[0-9]*F*' -printf '%f\n' 2>/dev/null | sort | tail -n 1
}

exec 9> "$copies/.lock"
flock -n 9 || { echo "another copy is under way"; exit 0; }

latest=$(find "$copies" -mindepth 1 -maxdepth 1 -type d -name '2*Z' | sort | tail -n 1)
before=$([ -z "$latest" ] || newest_backup "$latest")
now=$(newest_backup "$repository")
if [ -z "$now" ] && [ -z "$before" ]; then
    echo "there is no backup yet, nothing to copy"
    exit 0
fi

name=$(date -u +%Y-%m-%dT%H-%M-%SZ)
new="$copies/.new"
rm -rf "$new"
# Code 24: a file expired while it was read. The next attempt sees the repository as it is then.
for attempt in 1 2 3; do
    code=0
    rsync -rtp --chmod=D700,F600 --no-links --no-devices --no-specials ${latest:+"--link-dest=$latest"} \
        "$repository/" "$new/" || code=$?
    [ "$code" = 24 ] || break
    echo "attempt $attempt: files expired meanwhile"
done
if [ "$code" != 0 ] && [ "$code" != 24 ]; then
    echo "rsync ended with $code; the earlier copies are untouched" >&2
    exit 1
fi
sync -f "$new"
mv -T "$new" "$copies/$name"
echo "copied to $copies/$name, newest backup: ${now:-none}"

if [ "$(printf '%s\n%s\n' "$before" "$now" | sort | tail -n 1)" != "$now" ] || [ -z "$now" ]; then
    echo "THE REPOSITORY HAS LOST its newest backup $before: no copy is removed until it has a newer one." >&2
    echo "offsite-restore-copy $(basename "$latest") puts it back" >&2
    exit 1
fi

oldest_kept=$(date -u -d "-$days days" +%Y-%m-%dT%H-%M-%SZ)
find "$copies" -mindepth 1 -maxdepth 1 -type d -name '2*Z' -printf '%f\n' | sort | head -n -1 | while read -r copy; do
    if [ "$(printf '%s\n%s\n' "$copy" "$oldest_kept" | sort | head -n 1)" = "$copy" ]; then
        rm -rf "${copies:?}/$copy"
        echo "removed $copy, older than $days days"
    fi
done
