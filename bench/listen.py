"""Deploy file run before `deploys/site.py`: note what the deploys declare."""

from bench.declared import listen
from bench.playbook import TRANSLATIONS

listen(TRANSLATIONS)
