"""Looks at the machine before a run does: facts are gathered first, then judged by small pure checks."""
