"""The group of commands ``medseg bundle``."""

from __future__ import annotations

import typer

from medseg.cli._app import app

bundle_app = typer.Typer(
    help="Bundles: plan a new one, list, look into, import, audit, verify, pack, unpack, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(bundle_app, name="bundle")
