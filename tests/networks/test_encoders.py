"""Published encoders: what of a checkpoint matches, what does not, and that the network then answers as it did."""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import FlexibleUNet
from safetensors.torch import save_file

from medseg.errors import UsageError
from medseg.networks import VGGEncoder, VGGUNet, load_encoder, pretrained, read_checkpoint
from tests.networks.checkpoints import imagenet_resnet50, imagenet_vgg16_bn, medicalnet_resnet18

SLIM = (4, 4, 8, 8, 8)


def test_medicalnet_fits_the_resnet_of_monai_whole(tmp_path: Path) -> None:
    checkpoint = medicalnet_resnet18()
    torch.save(checkpoint, tmp_path / "resnet_18.pth", _use_new_zipfile_serialization=False)  # as it was published
    network = FlexibleUNet(1, 3, "resnet18", spatial_dims=3)
    match = load_encoder(network.encoder, read_checkpoint(tmp_path / "resnet_18.pth"))
    assert (len(match.copied), match.adapted, match.misfits, match.missing, match.unused) == (102, (), (), (), ())
    found = network.encoder.state_dict()
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(found[name.removeprefix("module.")], value)


def test_imagenet_resnet50_is_inflated_and_its_classifier_cut_off() -> None:
    checkpoint = imagenet_resnet50()
    network = FlexibleUNet(1, 3, "resnet50", spatial_dims=3)
    match = load_encoder(network.encoder, checkpoint)
    assert match.missing == match.misfits == ()
    assert match.unused == ("fc.weight", "fc.bias")
    assert len(match.adapted) == 53  # every convolution
    kernel = network.encoder.conv1.weight
    assert torch.allclose(kernel.sum(-1)[:, 0], checkpoint["conv1.weight"].sum(1), atol=1e-5)


def test_imagenet_resnet18_reports_the_shortcuts_that_medicalnet_does_not_have() -> None:
    state = {name.removeprefix("module."): value for name, value in medicalnet_resnet18()["state_dict"].items()}
    state["layer2.0.downsample.0.weight"] = torch.zeros(128, 64, 1, 1)
    match = load_encoder(FlexibleUNet(1, 2, "resnet18", spatial_dims=3).encoder, state)
    assert match.unused == ("layer2.0.downsample.0.weight",)
    assert "not used: layer2.0.downsample.0.weight" in str(match)


def test_of_a_whole_network_the_encoder_is_taken(tmp_path: Path) -> None:
    """What a run of medseg leaves: ``--encoder resnet18 --weights runs/restoring/checkpoints/final.pt``."""
    network = VGGUNet(3, 1, 2, SLIM, (8, 8, 4, 4))
    torch.save(network.state_dict(), tmp_path / "final.pt")
    other = VGGUNet(3, 1, 3, SLIM, (8, 8, 4, 4))
    pretrained(other, tmp_path / "final.pt")
    wanted = network.encoder.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in other.encoder.state_dict().items())
    decoders = other.decoder.state_dict(), network.decoder.state_dict()
    assert not all(torch.equal(value, decoders[1][name]) for name, value in decoders[0].items())


@pytest.mark.parametrize("part", ["", "decoder"])
def test_of_a_whole_network_the_part_that_is_named_is_taken(tmp_path: Path, part: str) -> None:
    network, other = (VGGUNet(3, 1, 2, SLIM, (8, 8, 4, 4)) for _ in range(2))
    torch.save(network.state_dict(), tmp_path / "final.pt")
    pretrained(other, tmp_path / "final.pt", part=part)
    wanted, found = (one.get_submodule(part).state_dict() for one in (network, other))
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize("inflation", ["mean", "centre"])
def test_an_inflated_vgg_sees_in_equal_slices_what_the_flat_one_sees(inflation: Any) -> None:
    checkpoint = imagenet_vgg16_bn(SLIM)
    flat, deep = VGGEncoder(2, 3, SLIM).eval(), VGGEncoder(3, 1, SLIM).eval()
    assert load_encoder(flat, checkpoint).adapted == ()
    match = load_encoder(deep, checkpoint, inflation=inflation)
    assert len(match.adapted) == 13
    assert match.missing == match.misfits == ()
    assert match.unused == ("classifier.0.weight", "classifier.0.bias")
    picture = torch.randn(1, 1, 16, 16)
    volume = picture[..., None].expand(-1, -1, -1, -1, 48)
    with torch.no_grad():
        wanted, found = flat(picture.expand(-1, 3, -1, -1)), deep(volume)
    # zero padding along the new axis changes what lies near its ends, unless kernels see one slice only
    levels = 5 if inflation == "centre" else 3
    for flat_map, deep_map in zip(wanted[:levels], found, strict=False):
        assert torch.allclose(deep_map[..., deep_map.shape[-1] // 2], flat_map, rtol=1e-3, atol=1e-3)


def test_vgg_unet_keeps_the_grid_and_every_level_counts() -> None:
    network = VGGUNet(3, 1, 2, SLIM, (8, 8, 4, 4))
    image = torch.randn(1, 1, 32, 16, 16)
    logits = network(image)
    assert logits.shape == (1, 2, 32, 16, 16)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert [tuple(m.shape[2:]) for m in network.encoder(image)] == [
        (32, 16, 16), (16, 8, 8), (8, 4, 4), (4, 2, 2), (2, 1, 1),
    ]  # fmt: skip


def test_usable_from_a_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from monai.bundle import ConfigParser

    save_file(imagenet_vgg16_bn(SLIM), tmp_path / "vgg.safetensors")
    parser = ConfigParser(
        {
            "imports": ["$import medseg", "$import medseg.networks"],
            "encoder_weights": str(tmp_path / "vgg.safetensors"),
            "network_def": {
                "_target_": "medseg.networks.VGGUNet",
                "out_channels": 2,
                "channels": list(SLIM),
                "decoder_channels": [8, 8, 4, 4],
            },
            "network": "$medseg.networks.pretrained(@network_def, @encoder_weights)",
            "optimizer": {
                "_target_": "torch.optim.AdamW",
                "params": "$medseg.networks.parameter_groups(@network, 0.001, {'encoder': 0.1})",
            },
        }
    )
    with caplog.at_level("INFO", logger="medseg.networks"):
        network = parser.get_parsed_content("network")
    assert "13 adapted" in caplog.text
    state = read_checkpoint(tmp_path / "vgg.safetensors")
    assert torch.equal(network.encoder.features[1].weight, state["features.1.weight"])
    assert [group["lr"] for group in parser.get_parsed_content("optimizer").param_groups] == [0.001, 0.0001]


def test_without_a_source_nothing_changes() -> None:
    network = VGGUNet(2, 1, 2, SLIM, (8, 8, 4, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in pretrained(network, None).state_dict().items())


def test_another_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="no convolution among"):
        load_encoder(VGGEncoder(3, 1, SLIM), imagenet_resnet50())


def test_misfits_are_reported_with_both_shapes() -> None:
    match = load_encoder(VGGEncoder(3, 1, (4, 4, 8, 8, 12)), imagenet_vgg16_bn(SLIM))
    assert "features.34.weight (8, 8, 3, 3) for (12, 8, 3, 3, 3)" in match.misfits
    assert "do not fit: " in str(match)


def test_offline_says_where_to_get_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("monai.networks.nets.resnet.get_pretrained_resnet_medicalnet", unreachable)
    with pytest.raises(UsageError, match=r"resnet_34_23dataset\.pth .* give the file instead"):
        read_checkpoint("medicalnet:34")
    with pytest.raises(UsageError, match="its depths are 10, 18"):
        read_checkpoint("medicalnet:17")


def test_what_is_not_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent.pth")
    torch.save({"network": VGGEncoder(2, 1, SLIM)}, tmp_path / "object.pth")
    with pytest.raises(UsageError, match="weights alone"):
        read_checkpoint(tmp_path / "object.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UsageError, match="no tensors"):
        read_checkpoint(tmp_path / "empty.pth")


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="5"):
        VGGEncoder(3, 1, (4, 8))
    with pytest.raises(ValueError, match="4"):
        VGGUNet(decoder_channels=(8, 8))
