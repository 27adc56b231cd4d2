"""Read the machine's logs: from Loki if it is available, else from the journal and files."""

from minipc.logs.asking import Answer, Question, ask
from minipc.logs.entries import Entry
from minipc.logs.queries import SavedQuery, saved_queries

__all__ = ["Answer", "Entry", "Question", "SavedQuery", "ask", "saved_queries"]
