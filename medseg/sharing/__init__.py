"""Bundles between sites: verify, pack, sign, unpack."""

from medseg.sharing.archive import Packed, Unpacked, pack, unpack
from medseg.sharing.model_card import model_card
from medseg.sharing.signing import create_key_pair
from medseg.sharing.verify import verify

__all__ = ["Packed", "Unpacked", "create_key_pair", "model_card", "pack", "unpack", "verify"]
