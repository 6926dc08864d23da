"""One file a command. Nothing here imports torch before a command runs, so that `--help` is instant."""
