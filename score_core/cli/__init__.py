"""The `score` command. Only this room talks to people."""
