"""Speed and memory against other tools; see README.md. Not part of the installed package."""
