from __future__ import annotations

from pathlib import Path

import pytest

from medseg.bundle.find import shipped_bundle
from medseg.errors import UsageError
from medseg.pacs.connect import parse_node
from medseg.pacs.settings import DicomNode, Limits, PortLimits, RunSettings, WebNode, read_settings

_SETTINGS = """
[nodes.archive]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242

[nodes.web]
url = "http://127.0.0.1:8042/dicom-web"
user = "me"
password_env = "MEDSEG_TEST_SECRET"

[listener]
folder = "inbox"
allowed_callers = ["ORTHANC"]

[[routes]]
name = "hippocampus"
bundle = "bundles/x"
write = ["seg"]
send_to = ["archive"]
"""


def test_limits_and_the_run_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pacs.toml"
    node = 'port = 4242\nlimits = { studies = 2, megabytes = 0.5 }\nretrieve = "move"\nmove_port = 11113'
    run = '[run]\nsource = "archive"\nwhere = { StudyDate = "20260101-" }\nmodalities = ["MR"]\n[[routes]]'
    path.write_text(_SETTINGS.replace("port = 4242", node).replace("[[routes]]", run))
    settings = read_settings(path)
    assert settings.nodes["archive"].limits == Limits(studies=2, megabytes=0.5)
    assert settings.nodes["web"].limits == Limits()
    assert settings.run == RunSettings(
        "archive", tmp_path.resolve() / "medseg-run", {"StudyDate": "20260101-"}, ("MR",)
    )


def test_limits_of_the_port_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pacs.toml"
    path.write_text(_SETTINGS.replace("[listener]", "[listener]\nport_limits = { max_waiting = 9 }"))
    listener = read_settings(path).listener
    assert listener is not None
    assert listener.port_limits == PortLimits(max_waiting=9)


def test_the_settings_name_nodes_listener_and_routes(tmp_path: Path) -> None:
    path = tmp_path / "pacs.toml"
    path.write_text(_SETTINGS)
    settings = read_settings(path)
    assert settings.nodes["archive"] == DicomNode("ORTHANC", "127.0.0.1", 4242)
    assert settings.listener is not None
    assert settings.listener.folder == tmp_path.resolve() / "inbox"
    assert settings.routes[0].bundle == tmp_path.resolve() / "bundles/x"
    assert parse_node("archive", settings) is settings.nodes["archive"]


def test_a_route_may_name_a_bundle_that_ships(tmp_path: Path) -> None:
    path = tmp_path / "pacs.toml"
    path.write_text(_SETTINGS.replace("bundles/x", "hippocampus_mri_segmentation"))
    assert read_settings(path).routes[0].bundle == shipped_bundle("hippocampus_mri_segmentation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("port = 4242", "prot = 4242"), "unknown keys"),
        (("port = 4242", ""), "incomplete"),
        (('send_to = ["archive"]', 'send_to = ["nowhere"]'), "nowhere"),
        (('allowed_callers = ["ORTHANC"]', "allowed_callers = []"), "allowed_callers"),
        (('ae_title = "ORTHANC"', 'ae_title = "MUCH-TOO-LONG-A-TITLE"'), "AE title"),
        (("port = 4242", 'port = 4242\nretrieve = "move"'), "move_port"),
        (("port = 4242", 'port = 4242\nretrieve = "pull"'), "get or move"),
        (("port = 4242", "port = 4242\nlimits = { instances = 0 }"), r"limits\.instances is 0"),
        (("port = 4242", "port = 4242\nlimits = { instance = 9 }"), r"nodes\.archive\.limits.*unknown keys"),
        (("[[routes]]", '[run]\nsource = "nowhere"\n[[routes]]'), r"run\.source"),
        (("[[routes]]", '[run]\nsource = "web"\nfolder = "inbox"\n[[routes]]'), "each its own"),
        (("[listener]", "[listener]\nport_limits = { idle_seconds = 0 }"), r"port_limits\.idle_seconds is 0"),
        (("[listener]", "[listener]\nport_limits = { max_waiting = true }"), r"port_limits\.max_waiting is True"),
        (("[listener]", "[listener]\nport_limits = { max_pdu_kb = nan }"), r"port_limits\.max_pdu_kb is nan"),
        (("[listener]", "[listener]\nport_limits = { idle = 1 }"), r"listener\.port_limits.*unknown keys"),
        (("[listener]", "[listener]\nport_limits = 5"), r"port_limits is 5"),
        (
            ("[listener]", '[listener]\nmax_associations = "16"'),
            r"listener\.max_associations is a str, expected a whole number",
        ),
        (("[listener]", "[listener]\nmax_open_studies = -1"), r"listener\.max_open_studies is -1"),
        (('user = "me"', "max_instance_mb = 0"), r"max_instance_mb is 0"),
        (("[listener]", "[listner]"), "unknown sections"),
        (("[listener]", "[listener"), "cannot be read"),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "pacs.toml"
    path.write_text(_SETTINGS.replace(*change))
    with pytest.raises(UsageError, match=message):
        read_settings(path)


def test_a_secret_comes_from_the_environment_and_never_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pacs.toml"
    path.write_text(_SETTINGS)
    node = read_settings(path).nodes["web"]
    assert isinstance(node, WebNode)
    with pytest.raises(UsageError, match="MEDSEG_TEST_SECRET"):
        node.secret(node.password_env)
    monkeypatch.setenv("MEDSEG_TEST_SECRET", "hush")
    assert node.secret(node.password_env) == "hush"
    assert "hush" not in repr(node) + str(node)


def test_a_person_may_type_an_address() -> None:
    assert parse_node("PACS@10.0.0.1:104") == DicomNode("PACS", "10.0.0.1", 104)
    assert parse_node("http://host/dicom-web/") == WebNode("http://host/dicom-web")
    with pytest.raises(UsageError, match="AET@host:port"):
        parse_node("archive")
