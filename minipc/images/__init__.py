"""Build images: a Debian root file system, disk images and container images."""
