"""The command line's commands, one file each, and what they share."""
