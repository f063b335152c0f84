"""Slices of volumes as pictures, in one convention for training, report and DICOM: the patient's right on the left."""

from medseg.pictures.sheet import Entry, Layer, Panel, Window, around, draw, render, sheet, whole, window_of
from medseg.pictures.view import View, colour, rgb, view_along, view_of_frame

__all__ = [
    "Entry",
    "Layer",
    "Panel",
    "View",
    "Window",
    "around",
    "colour",
    "draw",
    "render",
    "rgb",
    "sheet",
    "view_along",
    "view_of_frame",
    "whole",
    "window_of",
]
