#!/bin/sh
# Written by minipc (machine/minipc_machine/shell/break-glass.sh). For the machine's console, as root, when nobody can
# connect through the VPN: opens the operator's ports to the operator's networks for one hour, without the VPN.
# `minipc-break-glass close` closes them earlier.
set -eu
if [ "${1:-}" = close ]; then
    systemctl stop minipc-break-glass.timer 2>/dev/null || true
    systemctl reload minipc-firewall
    echo "closed again"
    exit 0
fi
systemctl stop minipc-break-glass.timer 2>/dev/null || true
systemd-run --quiet --collect --unit=minipc-break-glass --on-active=1h --timer-property=AccuracySec=1s \
    systemctl reload minipc-firewall
nft -f /etc/minipc/firewall-break-glass.nft
echo "open to the operator's networks for an hour; this machine's addresses:"
ip -brief address show scope global
