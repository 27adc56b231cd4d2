"""ArgoCD's own desired state: the upstream manifest, cut down to what one machine needs."""
