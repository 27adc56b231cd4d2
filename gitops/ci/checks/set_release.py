"""Writes the one file that says what runs: image, digest, commit.

    python3 ci/set_release.py --image ghcr.io/me/workload --digest sha256:… --commit 1f0c… > release/kustomization.yaml

With --tag the image is named by tag instead: an image that was imported from a file has no digest to be named by.
"""

from __future__ import annotations

import argparse
import re
import sys

TEMPLATE = """\
# What runs: written as a whole by set_release.py, in the CI of the default branch; nothing else is in this file.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
images:
  - name: workload
    newName: {image}
    {reference}
commonAnnotations:
  org.opencontainers.image.revision: "{commit}"
  minipc.local/image-digest: {digest}
"""
RULES = {
    "image": r"[a-z0-9][a-z0-9./:_-]*",
    "digest": r"sha256:[0-9a-f]{64}",
    "commit": r"[0-9a-f]{40}(-[0-9a-f]{12})?|unknown-[0-9a-f]{12}",
    "tag": r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}",
}


def rendered(image: str, digest: str, commit: str, tag: str | None = None) -> str:
    """The file.

    Raises:
        ValueError: a value is not what it is called.
    """
    for name, value in (("image", image), ("digest", digest), ("commit", commit), ("tag", tag or "x")):
        if not re.fullmatch(RULES[name], value):
            raise ValueError(f"{value!r} is no {name}")
    reference = f'newTag: "{tag}"' if tag else f"digest: {digest}"
    return TEMPLATE.format(image=image, reference=reference, commit=commit, digest=digest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("image", "digest", "commit"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tag")
    arguments = parser.parse_args()
    try:
        sys.stdout.write(rendered(arguments.image, arguments.digest, arguments.commit, arguments.tag))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
