"""``medseg pacs``: echo, find, fetch, send, listen, run."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.cli._startup import confine_command
from medseg.files import prepare_folder

if TYPE_CHECKING:
    from medseg.pacs import PacsSettings, Remote
    from medseg.pacs.settings import ListenerSettings, RunSettings

pacs_app = typer.Typer(help="DICOM network and DICOMweb: echo, find, fetch, send, listen, run.", no_args_is_help=True)
app.add_typer(pacs_app, name="pacs")

_Node = Annotated[str, typer.Argument(help="AET@host:port, a DICOMweb URL, or a name from the settings file.")]
_Settings = Annotated[Path | None, typer.Option("--settings", "-s", help="TOML file that names nodes and routes.")]


def _settings(path: Path | None) -> PacsSettings | None:
    from medseg.pacs import read_settings

    return read_settings(path) if path else None


def _remote(node: str, settings: Path | None) -> Remote:
    from medseg.pacs import open_remote, parse_node

    return open_remote(parse_node(node, _settings(settings)))


def _confine(settings: PacsSettings, work: ListenerSettings | RunSettings) -> None:
    """Behind the wall a node writes to its own folder, hears on its own ports and speaks to those of its peers."""
    from medseg.confinement import Reach, ports_of
    from medseg.pacs.settings import DicomNode, ListenerSettings, WebNode

    nodes = settings.nodes.values()
    heard = {0, *(node.move_port or 0 for node in nodes if isinstance(node, DicomNode))}  # 0: whence it speaks is free
    if isinstance(work, ListenerSettings):
        heard |= {work.port, work.health_port or 0}
    web = ports_of(node.url for node in nodes if isinstance(node, WebNode))
    spoken = None if web is None else (*web, *(node.port for node in nodes if isinstance(node, DicomNode)))
    confine_command([prepare_folder(work.folder)], Reach(tuple(heard), spoken), imports="medseg.inference.run.batch")


def _say_devices(settings: PacsSettings) -> None:
    """Say on what each route computes, and find out now whether it can, and whether the site's policy lets it."""
    if not settings.routes:
        return  # a node that only keeps what comes needs no torch, which takes 400 MB
    from medseg.bundle import Bundle
    from medseg.bundle.policy import require_listed
    from medseg.inference import Options
    from medseg.inference.located_bundle import LocatedBundle
    from medseg.inference.run.batch import computing

    for route in settings.routes:
        options = Options(route.write, device=route.device, precision=route.precision, locate=route.locate)
        bundle = options.bundle_of(Bundle.open(route.bundle))
        for one in (bundle.plain, bundle.locator) if isinstance(bundle, LocatedBundle) else (bundle,):
            require_listed(one)
        terminal().print(f"route {route.name}: {computing(options)}")


@pacs_app.command()
@command
def echo(node: _Node, *, settings: _Settings = None) -> Outcome:
    """Ask a node whether it is there.

    Example: medseg pacs echo ORTHANC@127.0.0.1:4242
    """
    seconds = _remote(node, settings).echo()
    terminal().print(f"{node} answered in {seconds * 1000:.0f} ms")
    return Outcome({"node": node, "seconds": seconds})


@pacs_app.command()
@command
def find(
    node: _Node,
    *,
    where: Annotated[
        list[str] | None, typer.Option("--where", "-w", help="DICOM keyword and value, such as ModalitiesInStudy=MR.")
    ] = None,
    series: Annotated[bool, typer.Option("--series", help="List series instead of studies.")] = False,
    limit: Annotated[int, typer.Option("--limit", help="List at most this many.")] = 100,
    settings: _Settings = None,
) -> Outcome:
    """List the studies or series that match; no names or dates of patients are shown.

    Example: medseg pacs find ORTHANC@127.0.0.1:4242 --where ModalitiesInStudy=MR --where StudyDate=20260101-
    """
    from medseg.errors import UsageError

    query: dict[str, str] = {}
    for condition in where or []:
        keyword, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(f"found --where {condition!r}, expected KEYWORD=VALUE, such as Modality=MR")
        query[keyword] = value
    level = "SERIES" if series else "STUDY"
    found = _remote(node, settings).find(query, level=level, limit=limit)
    for match in found:
        uid = match.series_uid or match.study_uid
        terminal().print(f"{match.modality:<8} {match.instances or '?':>6}  {uid}  {match.description}")
    terminal().print(f"{len(found)} found")
    return Outcome({"found": [vars(match) for match in found]})


@pacs_app.command()
@command
def fetch(
    node: _Node,
    study: Annotated[str, typer.Argument(help="StudyInstanceUID.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to fetch into.")],
    series: Annotated[str | None, typer.Option("--series", help="SeriesInstanceUID, to fetch one series.")] = None,
    settings: _Settings = None,
) -> Outcome:
    """Bring a study or a series here; file names are made by medseg and hold no identity.

    Example: medseg pacs fetch ORTHANC@127.0.0.1:4242 1.2.840.1 -o study
    """
    prepare_folder(output)
    count = sum(1 for _ in _remote(node, settings).fetch(study, series, output))
    terminal().print(f"{count} instances in {output}")
    return Outcome({"output": str(output), "instances": count}, complete=count > 0)


@pacs_app.command()
@command
def send(
    node: _Node,
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them.")],
    *,
    settings: _Settings = None,
) -> Outcome:
    """Store DICOM files at a node.

    Example: medseg pacs send ORTHANC@127.0.0.1:4242 out/*_seg.dcm
    """
    from medseg.ingest.record import is_apple_double

    below = [file for path in paths if path.is_dir() for file in sorted(path.rglob("*"))]
    files = [file for file in below if not is_apple_double(file)] + [path for path in paths if not path.is_dir()]
    result = _remote(node, settings).send([file for file in files if not file.is_dir()])
    terminal().print(f"{len(result.sent)} sent, {len(result.failed)} failed")
    for path, reason in result.failed.items():
        terminal().print(f"  {path.name}: {reason}")
    failed = [{"file": str(path), "reason": reason} for path, reason in result.failed.items()]
    return Outcome({"sent": len(result.sent), "failed": failed}, complete=not result.failed)


@pacs_app.command()
@command
def listen(
    settings: Annotated[Path, typer.Argument(help="TOML file with [listener], [nodes] and [[routes]].")],
) -> None:
    """Receive studies, run the bundles of their routes, send the results; stops at Ctrl-C or SIGTERM.

    Example: medseg pacs listen pacs.toml
    """
    from medseg.errors import Interrupted
    from medseg.pacs.settings import read_settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found = read_settings(settings)
    if found.listener is not None:
        _confine(found, found.listener)
    from medseg.pacs.listener import Listener

    _say_devices(found)
    with Listener(found) as listener:
        terminal().print(f"listening on port {listener.port}; stop with Ctrl-C")
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            raise Interrupted("stopped listening; what arrived is kept, and the same command continues it") from None


@pacs_app.command()
@command
def run(
    settings: Annotated[Path, typer.Argument(help="TOML file with [run], [nodes] and [[routes]].")],
) -> Outcome:
    """Find studies by rules, fetch them, run the bundles of their routes, send the results; each study once.

    Started again, it goes on where it stopped and takes new studies only.

    Example: medseg pacs run pacs.toml
    """
    from medseg.errors import Interrupted
    from medseg.pacs.settings import read_settings

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = terminal()
    found = read_settings(settings)
    if found.run is not None:
        _confine(found, found.run)
    from medseg.pacs.study_loop import answer_studies

    _say_devices(found)
    try:
        answered = answer_studies(found, progress=lambda study, state: console.print(f"{study}  {state}"))
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing is lost, and the same command continues") from None
    for study, reason in [*answered.done.items(), *answered.failed.items()]:
        if reason:
            console.print(f"{study}: {reason}")
    console.print(
        f"{answered.found} found, {answered.known} answered before, {len(answered.done)} answered now,"
        f" {len(answered.failed)} failed, {answered.left} left for later runs"
    )
    return Outcome(vars(answered), complete=not answered.failed)
