"""The operator's VPN: the list of clients, their keys and their configuration files."""
