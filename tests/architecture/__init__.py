"""The package as a whole: its modules, its names, and what is published."""
