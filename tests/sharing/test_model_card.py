from __future__ import annotations

from pathlib import Path

from medseg.bundle import Bundle
from medseg.sharing import model_card
from tests.bundle.sample import read_config, write_config


def test_the_card_says_what_the_metadata_says(bundle: Path) -> None:
    card = model_card(Bundle.open(bundle))
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: apache-2.0" in head.splitlines()
    assert "library_name: monai" in head.splitlines()
    assert '    - type: "mean_dice"\n      value: 0.9' in head
    assert "| 1 | sphere |" in body


def test_text_cannot_break_out_of_the_front_matter(bundle: Path) -> None:
    metadata = read_config(bundle, "metadata")
    metadata["data_source"] = 'x"\n---\nlicense: mit'
    write_config(bundle, "metadata", metadata)
    head = model_card(Bundle.open(bundle)).split("\n---\n")[0]
    assert 'name: "x\\" --- license: mit"' in head
