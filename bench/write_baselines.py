"""Deploy file run after the deploys, with `--dry`: write playbook and script from what they declare.

They contain the lab's generated secrets, as the machine does: the folder is private and removed after the run.
"""

import json
import os
from pathlib import Path

import yaml
from pyinfra import context

from bench import script
from bench.baselines import FOLDER_VARIABLE
from bench.declared import declared
from bench.playbook import playbook
from minipc.pyinfra_ext.facts.systemd import UnitStates

operations = declared(context.state)
units = [unit for each in operations if each.kind == "systemd.units_active" for unit in each.arguments["units"]]
states = context.host.get_fact(UnitStates, units=units)
folder = Path(os.environ[FOLDER_VARIABLE])

book = playbook(operations, resting={unit for unit, state in states.items() if state["ActiveState"] != "active"})
(folder / "files").mkdir(parents=True)
for name, data in book.files.items():
    (folder / "files" / name).write_bytes(data)
(folder / "site.yml").write_text(yaml.safe_dump(book.play(), sort_keys=False), encoding="utf-8")

kit = folder / "kit"
kit.mkdir()
for name, data in script.archives(operations).items():
    (kit / name).write_bytes(data)
(kit / "install.sh").write_text(script.script(operations), encoding="utf-8")

summary = {
    "operations": len(operations),
    "tasks": len(book.tasks),
    "resources": book.resources,
    "left_out_of_playbook": book.left_out,
    "left_out_of_script": script.left_out(operations),
}
(folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
