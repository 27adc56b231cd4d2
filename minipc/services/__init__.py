"""What follows from a service file: its variables, Kubernetes objects, ports and network policies."""
