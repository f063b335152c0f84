"""Imports every command file, which registers it; the order is the order of ``medseg --help``."""
