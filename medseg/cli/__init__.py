"""The ``medseg`` command: one thin file per command over one API function."""
