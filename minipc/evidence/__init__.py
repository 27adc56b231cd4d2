"""Evidence of a run: events, records, reports and the output on screen."""
