"""Real constructs raise no alarm and really open; the nearest harmful neighbour of each is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.bundle import Bundle, audit
from medseg.bundle.audit_expressions import judge_expression, judge_import
from medseg.bundle.findings import blocks
from medseg.inference import Predictor
from tests.bundle.sample import read_config, write_config
from tests.bundle.stand_ins import STAND_INS
from tests.inference.volumes import blobs, grid

NAMES = {
    **{name: name for name in ("os", "glob", "json", "logging", "datetime", "ignite", "copy", "sys", "pathlib")},
    "pd": "pandas",
    "dist": "torch.distributed",
    "partial": "functools.partial",
    "ndimage": "scipy.ndimage",
    "Events": "ignite.engine.Events",
}
"""What the expressions below find imported, as an audit that has refused some of it goes on."""

NEIGHBOURS = {
    "a rank": ("os.environ['LOCAL_RANK']", "os.environ['HOME']", "os.environ"),
    "a rank, computed": ("int(os.environ['RANK'])", "os.environ['LOCAL' + '_RANK']", "os.environ"),
    "a rank with a default": ("os.environ.get('LOCAL_RANK', '0')", "os.environ.get('TOKEN', '')", "may only be asked"),
    "a rank by function": ("os.getenv('WORLD_SIZE', '1')", "os.getenv(@name)", "may only be asked"),
    "the environment handed on": ("{'n': os.environ['RANK']}", "dict(os.environ)", "os.environ"),
    "a function completed": ("partial(torch.clamp, min=0)", "partial(torch.load, weights_only=False)", "torch.load"),
    "a class completed": (
        "partial(monai.transforms.Resize, spatial_size=(8, 8))",
        "partial(monai.transforms.LoadImage, reader='os.system')",
        "handed on",
    ),
    "literal keywords": ("partial(torch.sum, dim=[1, 2])", "partial(torch.sum, dim=@dims.pop)", "to literals"),
    "a named function": ("partial(torch.clamp)", "partial(@loader, dtype=None)", "which it names"),
    "weights": ("torch.load(@path)", "torch.load(@path, weights_only=False)", "weights_only"),
    "weights on a device": (
        "torch.load(@path, map_location=torch.device('cuda'))",
        "torch.load(@path, pickle_module=@evil)",
        "pickle_module",
    ),
    "a column": (
        "list(pd.read_csv(@dir + 'test.csv').t2)",
        "list(pd.read_csv(@dir + 'test.csv').to_pickle('x'))",
        "to_",
    ),
    "a column by name": (
        "pd.read_csv(os.path.join(@dir, 'a.csv'), sep=',')['image'].values",
        "pd.read_csv(@file).eval('a.b(1)')",
        "one column",
    ),
    "a table": ("pd.read_csv('cases.csv')['image'].tolist()", "pd.read_csv('https://x.org/' + @name).t2", "local file"),
    "a list of cases": (
        "pd.read_csv(@dir + '/a.csv').t2",
        "pd.read_csv('/etc/passwd', sep=':')['root']",
        "ends in .csv",
    ),
    "a table here": (
        "pd.read_csv(@dir + '/a.csv').t2",
        "pd.read_csv('http:/' + '/127.0.0.1:9/' + 'a.csv').t2",
        "local file",
    ),
    "a separator": ("pd.read_csv('a.csv', sep=';').t2", "pd.read_csv('a.csv', sep='(a+)+b').t2", "local file"),
    "a log line": ("logging.info('begin')", "logging.info('%999999999d', 1)", "only give its message"),
    "a file's name": ("pd.read_csv(@dir + 'a.csv')['a']", "pd.read_csv(@dir + '/../a.csv')['a']", "ends in .csv"),
    "a file at all": ("pd.read_csv('a.csv')['a']", "pd.read_csv('/home/a.csv')['a']", "local file"),
    "two columns": ("pd.read_csv('cases/test.tsv')['a']", "pd.read_csv(@file)[['a', 'b']]", "one column"),
    "an event": ("Events.ITERATION_COMPLETED(every=50)", "Events.ITERATION_COMPLETED.__class__", "__class__"),
    "a filter of events": (
        "Events.EPOCH_STARTED(event_filter=lambda engine, event: event % 5 == 0)",
        "Events.EPOCH_STARTED(event_filter=os.system)",
        "os.system",
    ),
    "an enumeration": ("monai.utils.CommonKeys.IMAGE", "monai.utils.CommonKeys.mro", "mro"),
    "a device": ("torch.device('cuda:0')", "torch.device.__init__", "__init__"),
    "processes": ("dist.init_process_group(backend='nccl')", "dist.init_process_group('nccl', 'tcp://x:1')", "backend"),
    "what they tell": ("400 * dist.get_world_size()", "dist.recv_object_list([1])", "recv_object_list"),
    "paths that are computed": ("os.path.join(@root, 'eval')", "os.path.expandvars(@root)", "expandvars"),
    "constants": ("(np.pi, np.float16, np.newaxis)", "np.lib.npyio", "npyio"),
    "words in the log": ("logging.info('found ' + str(1))", "logging.FileHandler('x')", "FileHandler"),
    "the time": ("datetime.datetime.now().strftime('%y%m%d')", "datetime.sys.modules", "datetime.sys"),
    "a dilated label": ("lambda x, n=@n: ndimage.binary_dilation(x, iterations=n)", "ndimage.os.system('x')", "os"),
    "a default": ("lambda x, s=@n: [x == _k for _k in range(s)]", "lambda x, f=os.system: x", "os.system"),
    "a list of dicts": ("[{@image: i} for i in @found]", "json.load(open('/etc/passwd'))", "open"),
    "colours": ("lambda x: x.convert('RGB')", "lambda x: x.convert(@mode)", "convert"),
    "a network by keyword": (
        "monai.networks.nets.HoVerNet(mode='fast')",
        "monai.networks.nets.HoVerNet(pretrained_url='https://x.org/w')",
        "pretrained_url",
    ),
    "the bundle's folder": ("os.path.abspath(@bundle_root)", "sys.path.append(@bundle_root)", "sys"),
    "a file's text": ("monai.data.load_decathlon_datalist(@file)", "json.loads(pathlib.Path(@f).read_text())", "json"),
}
"""An expression that real configs use, the nearest one that is not harmless, and a word of the refusal."""

IMPORTS = {
    "from functools import partial": "from functools import reduce",
    "from ignite.engine import Events": "from ignite.engine import *",
    "from scipy import ndimage": "from scipy import io",
    "import pandas as pd": "import pandas as os",
    "import datetime": "import sys",
    "import torch.distributed as dist": "import torch.distributed.rpc as dist",
}
"""An import that real configs use, and the nearest one that is refused."""


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_the_nearest_harmful_neighbour_is_refused(name: str) -> None:
    harmless, harmful, word = NEIGHBOURS[name]
    assert judge_expression(harmless, NAMES) == []
    problems = judge_expression(harmful, NAMES)
    assert any(word in str(problem) for problem in problems), problems


@pytest.mark.parametrize("harmless", IMPORTS)
def test_the_nearest_harmful_import_is_refused(harmless: str) -> None:
    assert judge_import(harmless) == []
    assert judge_import(IMPORTS[harmless])


def test_the_environment_can_take_back_that_torch_loads_tensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge_expression("torch.load(@path)", NAMES) == []
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert judge_expression("torch.load(@path)", NAMES)
    assert judge_expression("torch.load(@path, weights_only=True)", NAMES) == []


@pytest.mark.parametrize(
    "network",
    [
        {"_target_": "HoVerNet", "pretrained_url": "https://x.org/w"},
        {"_target_": "HoVerNet", "_mode_": "callable"},
    ],
)
def test_weights_are_not_fetched_from_elsewhere(network: dict[str, Any], bundle: Path) -> None:
    STAND_INS["nuclei under a microscope"].write(bundle)
    config = read_config(bundle, "inference")
    write_config(bundle, "inference", {**config, "network_def": {**config["network_def"], **network}})
    assert len(blocks(audit(bundle, "infer"))) == 1


@pytest.mark.parametrize("name", STAND_INS)
def test_no_false_alarm_on_what_the_zoo_does(name: str, bundle: Path) -> None:
    STAND_INS[name].write(bundle)
    for role in ("infer", "train", "evaluate", "all"):
        assert blocks(audit(bundle, role)) == [], role


@pytest.mark.parametrize("name", STAND_INS)
def test_it_opens_and_labels_a_volume(name: str, bundle: Path) -> None:
    stand_in = STAND_INS[name]
    stand_in.write(bundle)
    opened = Bundle.open(bundle, "audited")
    parsed = opened.parsed("network_def")
    assert opened.pipeline.network == "network_def"
    if not stand_in.labels:
        return
    torch.manual_seed(0)
    torch.save(parsed.get("network_def").state_dict(), bundle / stand_in.weights)
    image = MetaTensor(np.stack([blobs((32, 32, 32))] * stand_in.inputs), affine=grid("plain"))
    found = Predictor(Bundle.open(bundle, "audited"), "cpu", "fp32", trust=False).predict(image)
    assert found.label_map.shape == (32, 32, 32)
