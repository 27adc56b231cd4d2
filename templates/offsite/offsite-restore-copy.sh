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

systemctl stop minipc-sftp.service
trap 'systemctl start minipc-sftp.service' EXIT
aside="$copies/aside-$(date -u +%Y-%m-%dT%H-%M-%SZ)"
if [ -e "$repository" ]; then
    mv -T "$repository" "$aside"
    echo "what was there is now $aside"
fi
cp -a --reflink=auto "$copies/$name" "$repository.new"
chown -R minipc-sftp:minipc-sftp "$repository.new"
sync -f "$repository.new"
mv -T "$repository.new" "$repository"
echo "the repository is now the copy $name"
