"""Bundles between sites: verify, pack, sign, unpack."""

from medseg.bundle.signing import create_key_pair
from medseg.sharing.archive import Packed, Unpacked, pack, unpack
from medseg.sharing.archive_reader import Peeked, peek
from medseg.sharing.model_card import model_card
from medseg.sharing.verify import verify

__all__ = ["Packed", "Peeked", "Unpacked", "create_key_pair", "model_card", "pack", "peek", "unpack", "verify"]
