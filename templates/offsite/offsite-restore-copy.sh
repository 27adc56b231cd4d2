#!/bin/sh
# Written by minipc (templates/offsite/offsite-restore-copy.sh). Usage: offsite-restore-copy [NAME]
#
# Puts a copy (the latest one with a backup in it when none is named) in the place of pgBackRest's repository. What was
# there is moved aside, not deleted. Run as root on the off-site machine.
set -eu
repository=/srv/minipc-offsite/sftp/pgbackrest
copies=/srv/minipc-offsite/copies

if [ $# -gt 0 ]; then
    name=$1
else
    name=$(find "$copies" -mindepth 4 -maxdepth 4 -path "$copies/2*Z/backup/*" -name backup.info | sort | tail -n 1)
    name=${name#"$copies/"}
    name=${name%%/*}
fi
if [ -z "$name" ] || [ ! -d "$copies/$name" ]; then
    echo "there is no copy ${name:-at all}; there are:" >&2
    ls "$copies" >&2
    exit 1
fi

# All of the copy is there before anything that is served goes away.
rm -rf "$repository.new"
trap 'rm -rf "$repository.new"' EXIT
need=$(du -sk "$copies/$name" | cut -f 1)
free=$(df -k --output=avail "$copies" | tail -n 1)
if [ "$need" -ge "$free" ]; then
    echo "no room: the copy takes $((need / 1024)) MB, $((free / 1024)) are free; nothing was changed" >&2
    du -sh "$copies"/aside-* >&2 2>/dev/null || true
    exit 1
fi
cp -a --reflink=auto "$copies/$name" "$repository.new"
chown -R minipc-sftp:minipc-sftp "$repository.new"
sync -f "$repository.new"

systemctl stop minipc-sftp.service
trap 'rm -rf "$repository.new"; systemctl start minipc-sftp.service' EXIT
aside="$copies/aside-$(date -u +%Y-%m-%dT%H-%M-%SZ)"
if [ -e "$repository" ]; then
    mv -T "$repository" "$aside"
    echo "what was there is now $aside"
fi
mv -T "$repository.new" "$repository"
echo "the repository is now the copy $name; once it is as it should be: offsite-copy --accept"
