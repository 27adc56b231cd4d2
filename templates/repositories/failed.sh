#!/bin/sh
# Written by minipc (templates/repositories/failed.sh). Usage: failed UNIT. Started by OnFailure= of our units.
set -eu
unit=$1
result=$(systemctl show -p Result --value -- "$unit")
logger -p daemon.err -t minipc-failed -- "$unit failed ($result): journalctl -u $unit -n 50"
folder=/var/lib/prometheus/node-exporter
name="minipc_failed_$(printf %s "${unit%.service}" | tr -c 'A-Za-z0-9_' _)"
{
    echo "# HELP minipc_unit_last_failure_timestamp_seconds When this unit last failed."
    echo "# TYPE minipc_unit_last_failure_timestamp_seconds gauge"
    echo "minipc_unit_last_failure_timestamp_seconds{unit=\"$unit\"} $(date +%s)"
} > "$folder/.$name.new"
chmod 644 "$folder/.$name.new"
mv -f "$folder/.$name.new" "$folder/$name.prom"
