"""Releases: desired state in Git, what ArgoCD made of it, and the way back from a pod to a commit."""
