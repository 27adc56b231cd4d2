"""What was logged on the machine: from Loki where it is, else from the journal."""

from minipc.logs.asking import Answer, Question, ask
from minipc.logs.entries import Entry
from minipc.logs.queries import SavedQuery, saved_queries

__all__ = ["Answer", "Entry", "Question", "SavedQuery", "ask", "saved_queries"]
