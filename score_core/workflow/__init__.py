"""A front end for workflow engines: one job of theirs is one call here."""
