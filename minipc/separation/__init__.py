"""What each side of the machine reaches, seen from outside: scans, canaries that would answer, handshakes."""
