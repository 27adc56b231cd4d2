#!/bin/sh
# Written by minipc (machine/minipc_machine/shell/offsite-restore-copy.sh). Usage: offsite-restore-copy [NAME]
#                                                         offsite-restore-copy restic [NAME]
#
# Puts a copy in the place of pgBackRest's repository, or of restic's; without a name the latest copy that contains a
# backup. The present repository is moved aside, not deleted. Run as root on the off-site host.
set -eu
repository=/srv/minipc-offsite/sftp/pgbackrest
copies=/srv/minipc-offsite/copies
contains='backup/*/backup.info'
account=minipc-sftp
unit=minipc-sftp.service
if [ "${1:-}" = restic ]; then
    shift
    repository=/srv/minipc-offsite/restic/minipc
    copies=$copies/restic
    contains=config
    account=restic-rest-server
    unit=restic-rest-server.service
fi

if [ $# -gt 0 ]; then
    name=$1
else
    name=$(find "$copies" -mindepth 2 -maxdepth 4 -path "$copies/2*Z/$contains" | sort | tail -n 1)
    name=${name#"$copies/"}
    name=${name%%/*}
fi
if [ -z "$name" ] || [ ! -d "$copies/$name" ]; then
    echo "there is no copy ${name:-with a backup}; there are:" >&2
    ls "$copies" >&2
    exit 1
fi

# Complete the copy before touching what is served.
rm -rf "$repository.new"
trap 'rm -rf "$repository.new"' EXIT
need=$(du -sk "$copies/$name" | cut -f 1)
free=$(df -k --output=avail "$copies" | tail -n 1)
if [ "$need" -ge "$free" ]; then
    echo "not enough disk space: the copy takes $((need / 1024)) MB, $((free / 1024)) MB are free; nothing was changed" >&2
    du -sh "$copies"/aside-* >&2 2>/dev/null || true
    exit 1
fi
cp -a --reflink=auto "$copies/$name" "$repository.new"
chown -R "$account:$account" "$repository.new"
sync -f "$repository.new"

systemctl stop "$unit"
trap 'rm -rf "$repository.new"; systemctl start "$unit"' EXIT
aside="$copies/aside-$(date -u +%Y-%m-%dT%H-%M-%SZ)"
if [ -e "$repository" ]; then
    mv -T "$repository" "$aside"
    echo "the former repository is now $aside"
fi
mv -T "$repository.new" "$repository"
echo "the repository is now the copy $name"
[ "$unit" != minipc-sftp.service ] || echo "after checking it: offsite-copy --accept"
