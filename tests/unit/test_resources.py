"""`minipc status --resources`: which memory belongs to which unit, pod and container."""

from __future__ import annotations

import subprocess

from minipc.checks.resources import SCRIPT, Used, read
from tests.alert_cases import SHOP

POD = "0a1b2c3d-0000-1111-2222-333344445555"
CONTAINER = "f" * 64
PRINTED = f"""\
memory /system.slice/k3s.service 400000
memory /system.slice/k3s.service 1000
memory /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD.replace("-", "_")}.slice/cri-x.scope 50000
memory /kubepods/burstable/pod{POD}/c 1000
memory /machine.slice/libpod-{CONTAINER}.scope 30000
memory / 10
memory /init.scope 5
nonsense
pod shop_web-7d9c_{POD}
container {CONTAINER} minipc-shop-mail-mail
"""


def test_memory_is_added_up_by_unit_pod_and_container():
    assert read(PRINTED, [SHOP]) == [
        Used("k3s.service", "", 401000 * 1024),
        Used("shop/web-7d9c", "shop", 51000 * 1024),
        Used("minipc-shop-mail-mail", "shop", 30000 * 1024),
        Used("outside of all units", "", 10 * 1024),
        Used("init.scope", "", 5 * 1024),
    ]


def test_a_queue_and_a_longer_name_belong_to_their_service():
    two = SHOP.model_copy(update={"name": "shop-two"})
    names = ("redis-server@queue-shop.service", "redis-server@queue-shop-two.service", "minipc-shop-two-web.service")
    printed = "".join(f"memory /system.slice/{name} {number}\n" for number, name in enumerate(names, 1))
    found = {each.name: each.service for each in read(printed, [SHOP, two])}
    assert [found[name] for name in names] == ["shop", "shop-two", "shop-two"]


def test_the_script_measures_this_computer():
    done = subprocess.run(["sh", "-s"], input=SCRIPT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert sum(each.memory for each in read(done.stdout, [])) > 2**20
