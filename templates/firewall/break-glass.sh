#!/bin/sh
# Written by minipc (templates/firewall/break-glass.sh). On the machine's own screen, as root, when the VPN lets nobody
# in: for an hour the operator's networks reach the operator's ports beside it. `minipc-break-glass close` ends it.
set -eu
if [ "${1:-}" = close ]; then
    systemctl stop minipc-break-glass.timer 2>/dev/null || true
    systemctl reload minipc-firewall
    echo "shut again"
    exit 0
fi
systemctl stop minipc-break-glass.timer 2>/dev/null || true
systemd-run --quiet --collect --unit=minipc-break-glass --on-active=1h --timer-property=AccuracySec=1s \
    systemctl reload minipc-firewall
nft -f /etc/minipc/firewall-break-glass.nft
echo "open to the operator's networks for an hour; this machine's addresses:"
ip -brief address show scope global
