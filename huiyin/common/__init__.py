"""What three or more folders need: stage, settings, tables, errors, progress, worker processes."""
