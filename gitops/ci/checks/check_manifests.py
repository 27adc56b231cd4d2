"""The manifests build, and every object is one that this version of Kubernetes takes.

    python3 ci/check_manifests.py --kubernetes 1.36 workload/overlays/production

Objects of kinds that Kubernetes itself does not have (ArgoCD's) are named and skipped. Exit codes: 0 valid, 1 not, 2 it
could not be told.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

import kubernetes_validate
import yaml


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubernetes", required=True, metavar="MINOR", help="such as 1.36")
    parser.add_argument("directories", nargs="+")
    arguments = parser.parse_args()
    build = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if not shutil.which(build[0]):
        print("neither kustomize nor kubectl is installed", file=sys.stderr)
        return 2
    problems = 0
    for directory in arguments.directories:
        done = subprocess.run([*build, directory], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            print(f"{directory}: {done.stderr.strip()}", file=sys.stderr)
            problems += 1
            continue
        objects = [each for each in yaml.safe_load_all(done.stdout) if each]
        problems += sum(map(_invalid, objects, [arguments.kubernetes] * len(objects)))
        print(f"{directory}: {len(objects)} objects")
    return 1 if problems else 0


def _invalid(each: dict, minor: str) -> bool:
    name = f"{each.get('kind')} {each.get('metadata', {}).get('name')}"
    try:
        kubernetes_validate.validate(each, minor, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        print(f"{name}: not a kind of Kubernetes {minor}, skipped")
    except kubernetes_validate.ValidationError as error:
        print(f"{name}: {error.message}", file=sys.stderr)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
