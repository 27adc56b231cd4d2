#!/bin/sh
# Written by minipc (templates/host/policy-rc.d). While a converge installs packages, a package's own service is not
# started with the package's own configuration; the converge starts it once it is configured. Upgrades by apt or by
# unattended-upgrades are not held up.
[ -z "$MINIPC_HOLD_STARTS" ] || exit 101
exit 0
