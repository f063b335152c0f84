"""Bundles between sites: pack, sign, unpack, export, and plan a new one from data."""

from medseg.sharing.archive import Packed, Unpacked, pack, unpack
from medseg.sharing.export import Exported, export
from medseg.sharing.model_card import model_card
from medseg.sharing.new import create_bundle
from medseg.sharing.plan import Budget, Plan, make_plan
from medseg.sharing.signing import create_key_pair

__all__ = [
    "Budget",
    "Exported",
    "Packed",
    "Plan",
    "Unpacked",
    "create_bundle",
    "create_key_pair",
    "export",
    "make_plan",
    "model_card",
    "pack",
    "unpack",
]
