"""What the command line's commands do, each module imported when its command runs."""
