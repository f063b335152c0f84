"""The ways in which datasets lie on disk, one per file."""
