"""Tricks of the corpus that are a value: an expression, or a component. Each reaches the canary when it is resolved."""

from __future__ import annotations

from typing import Any

__all__ = ["COMPONENTS", "ENDLESS", "EXPRESSIONS"]

_OPEN = "open('CANARY/x', 'w')"
_MOVE = "'CANARY/victim', 'CANARY/moved'"
_TEXTS = "['CANARY/x']"

EXPRESSIONS: dict[str, str] = {
    # names and calls
    "open": _OPEN,
    "open with a new line before": f"\n{_OPEN}",
    "open with tabs and spaces": "open (\t'CANARY/x' ,\t'w')",
    "open in full-width letters": "ｏｐｅｎ('CANARY/x', 'w')",
    "open in bold letters": "𝐨𝐩𝐞𝐧('CANARY/x', 'w')",
    "open in a long text": f"{_OPEN} or '{'a' * 3500}'",
    "open under a condition": f"1 if {_OPEN} else 2",
    "open in a comparison": f"0 < len(str({_OPEN})) < 9",
    "open in a slice": f"[1][:len(str({_OPEN}))]",
    "open as a key": f"{{{_OPEN}: 1}}",
    "open as the start of a sum": f"sum([], {_OPEN})",
    "open in an f-string": f'f"{{{_OPEN}}}"',
    "open in the format of an f-string": f'f"{{1:{{{_OPEN}}}}}"',
    "open in an argument by star": "open(*['CANARY/x', 'w'])",
    "open in arguments by two stars": "open(**{'file': 'CANARY/x', 'mode': 'w'})",
    "eval": f'eval("{_OPEN}")',
    "exec": f'exec("{_OPEN}")',
    "compile": f"eval(compile(\"{_OPEN}\", 'a', 'eval'))",
    "__import__": "__import__('os').mkdir('CANARY/x')",
    "__builtins__": "__builtins__['open']('CANARY/x', 'w')",
    "globals": "globals()['torch'].os.mkdir('CANARY/x')",
    "vars": "vars(torch)['os'].mkdir('CANARY/x')",
    "getattr": "getattr(torch.os, 'mkdir')('CANARY/x')",
    "type": "type('X', (), {'__del__': lambda self: torch.os.mkdir('CANARY/x')})() and None",
    # what is bound anew
    "walrus": "(f := open) and f('CANARY/x', 'w')",
    "lambda that is called": "(lambda: torch.os.mkdir('CANARY/x'))()",
    "lambda with a default": "(lambda f=open: f('CANARY/x', 'w'))()",
    "lambda with a keyword default": "(lambda *, f=open: f('CANARY/x', 'w'))()",
    "lambda that hides a module": "(lambda torch: torch('CANARY/x', 'w'))(open)",
    "lambda that hides a function": "(lambda list: list('CANARY/x', 'w'))(open)",
    "comprehension that calls": "[f('CANARY/x', 'w') for f in [open]]",
    "comprehension that hides a function": "[list('CANARY/x', 'w') for list in [open]]",
    "comprehension that binds an item": "[f.pop() for f in [[torch.os.mkdir('CANARY/x')]]]",
    "comprehension in a condition": f"[1 for i in [1] if {_OPEN}]",
    "comprehension of a dictionary": f"{{i: {_OPEN} for i in [1]}}",
    "generator": f"list({_OPEN} for i in [1])",
    "handed to map": f"list(map(torch.os.mkdir, {_TEXTS}))",
    "handed to filter": f"list(filter(torch.os.mkdir, {_TEXTS}))",
    "handed to sorted": f"sorted({_TEXTS}, key=torch.os.mkdir)",
    "handed to max": f"max({_TEXTS}, key=torch.os.mkdir)",
    "handed to iter": "next(iter(lambda: torch.os.mkdir('CANARY/x'), 1))",
    "handed to reduce": f"torch.functools.reduce(torch.os.rename, [{_MOVE}])",
    "handed to partial": "torch.functools.partial(torch.os.mkdir, 'CANARY/x')()",
    "in a list of functions": "[open][0]('CANARY/x', 'w')",
    "in a dictionary of functions": "{'f': open}.get('f')('CANARY/x', 'w')",
    "in a method of a list": "[open].copy()[0]('CANARY/x', 'w')",
    # the way over attributes
    "subclasses": (
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Quitter'][0]"
        ".__init__.__globals__['__builtins__']['open']('CANARY/x', 'w')"
    ),
    "globals of a function": "monai.utils.first.__globals__['warnings'].sys.modules['os'].mkdir('CANARY/x')",
    "globals of a method": "torch.nn.Module.train.__globals__['torch'].os.mkdir('CANARY/x')",
    "attribute in full-width letters": "torch.ｏｓ.mkdir('CANARY/x')",
    "module inside torch": "torch.os.mkdir('CANARY/x')",
    "module inside a module of torch": "torch.serialization.os.mkdir('CANARY/x')",
    "module inside numpy": "numpy.lib._npyio_impl.os.mkdir('CANARY/x')",
    "module inside monai": "monai.utils.module.os.mkdir('CANARY/x')",
    "module inside monai.data": "monai.data.utils.os.mkdir('CANARY/x')",
    "method by text": "'{0.__class__.__mro__}'.format(torch) and torch.os.mkdir('CANARY/x')",
    "format_map": "'{a.os}'.format_map({'a': torch}) and torch.os.mkdir('CANARY/x')",
    "percent": f"'%s' % {_OPEN}",
    # what libraries do
    "numpy writes a text": "numpy.savetxt('CANARY/x', [1])",
    "numpy writes an array": "numpy.save('CANARY/x', [1])",
    "numpy writes by a method": "numpy.zeros(1).tofile('CANARY/x')",
    "numpy maps a file": "numpy.memmap('CANARY/x', mode='w+', shape=1)",
    "numpy reads a secret": "numpy.fromfile('CANARY/secret', 'u1')",
    "numpy loads": "numpy.load('CANARY/secret', allow_pickle=True)",
    "torch writes": "torch.save(1, 'CANARY/x')",
    "torch maps a file": "torch.from_file('CANARY/x', shared=True, size=9)",
    "torch loads anything": "torch.load('CANARY/secret', weights_only=False)",
    "torch loads what lies outside": "torch.load('CANARY/secret', weights_only=True)",
    "torch.hub": "torch.hub.download_url_to_file('file:///dev/null', 'CANARY/x')",
    "torch.hub fetches": "torch.hub.load_state_dict_from_url('http://127.0.0.1:9/x.pt', model_dir='CANARY/d')",
    "torch.ops loads a library": "torch.ops.load_library('CANARY/secret')",
    "MONAI's instantiate": "monai.utils.module.instantiate('os.mkdir', 'default', path='CANARY/x')",
    "MONAI's optional_import": "monai.utils.optional_import('os')[0].mkdir('CANARY/x')",
    "MONAI runs a program": "monai.utils.misc.run_cmd(['touch', 'CANARY/x'])",
    "MONAI's parser": "monai.bundle.ConfigParser({'a': '$' + \"open('CANARY/x', 'w')\"}).get_parsed_content('a')",
    "MONAI downloads": "monai.apps.download_url('http://127.0.0.1:9/x', 'CANARY/x')",
    "MONAI writes a config": "monai.bundle.ConfigParser.export_config_file({}, 'CANARY/x')",
    "MONAI makes a folder": "monai.utils.misc.check_parent_dir('CANARY/d/x')",
    "a reader by a keyword": "monai.transforms.LoadImage(reader='subprocess.Popen', args=['touch', 'CANARY/x'])",
    "a reader by position": "monai.transforms.LoadImage('subprocess.Popen', args=['touch', 'CANARY/x'])",
    "a reader handed on": "list(map(monai.transforms.LoadImage, ['os.getcwd'])) and torch.os.mkdir('CANARY/x')",
    "a reader by a reference": "monai.transforms.LoadImage(reader=['subprocess.Popen'][0], args=['touch', 'CANARY/x'])",
    "a class as a value": "[c(log_dir='CANARY/d') for c in [monai.handlers.TensorBoardStatsHandler]]",
    # files and the system, by what the imports bind
    "os makes folders": "os.makedirs('CANARY/d')",
    "os lists and renames": f"os.rename({_MOVE})",
    "os runs": "os.system('touch CANARY/x')",
    "os reads the environment": "open('CANARY/' + os.environ['HOME'].replace('/', '_'), 'w')",
    "os.path's own os": "os.path.os.mkdir('CANARY/x')",
    "glob's own os": "glob.os.mkdir('CANARY/x')",
    "a module as a text": f"[m.replace({_MOVE}) for m in [os]]",
    "a module by MONAI's table": f"__local_refs['imports::1'].replace({_MOVE})",
    "a module by a folded name": f"__ｌocal_refs['imports::1'].replace({_MOVE})",
    "a module by a name in italics": f"__𝑙ocal_refs['imports::1'].replace({_MOVE})",
    "a module by a text of two parts": f"__loｃal_refs['imports' '::1'].replace({_MOVE})",
    "two expressions": "(1, torch.os.mkdir('CANARY/x'))",
    "await": "[torch.os.mkdir('CANARY/x') for i in [1]] or (lambda: (yield))",
    # writers by an allowed class
    "a writer of events": "torch.utils.tensorboard.SummaryWriter(log_dir='CANARY/d')",
    "a writer of events by position": "torch.utils.tensorboard.SummaryWriter('CANARY/d')",
    "a cache": "monai.data.PersistentDataset(data=[1], transform=[], cache_dir='CANARY/d')",
    "a cache of several": (
        "monai.data.CacheNTransDataset(data=[1], transform=[], cache_n_trans=1, cache_dir='CANARY/d')"
    ),
    "a writer that is called": "monai.transforms.SaveImage(output_dir='CANARY/d')(torch.zeros(1, 2, 2, 2))",
    "weights from a network": (
        "monai.networks.nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=2, pretrained=True)"
    ),
    "weights by default": "monai.networks.nets.EfficientNetBN('efficientnet-b0')",
    "a reader that is called": "monai.transforms.LoadImage(reader='NibabelReader')('CANARY/secret.nii')",
    "a list of cases outside": "monai.data.load_decathlon_datalist('CANARY/secret')",
    "loader with processes": (
        "next(iter(monai.data.DataLoader(@bundle_root, num_workers=2, multiprocessing_context='spawn')))"
    ),
}
"""What stands behind ``$``; ``CANARY`` is the folder that is reached, and the imports are ``glob`` and ``os``."""

_STATS = {"_target_": "StatsHandler"}
_FIRST = "monai.utils.first"


def _touch(**more: Any) -> dict[str, Any]:
    return {**more, "args": ["touch", "CANARY/x"]}


COMPONENTS: dict[str, Any] = {
    "target os.mkdir": {"_target_": "os.mkdir", "path": "CANARY/x"},
    "target through torch": {"_target_": "torch.os.mkdir", "path": "CANARY/x"},
    "target through torch.serialization": {"_target_": "torch.serialization.os.mkdir", "path": "CANARY/x"},
    "target through torch.utils.data": {"_target_": "torch.utils.data.dataloader.os.mkdir", "path": "CANARY/x"},
    "target through monai.utils": {"_target_": "monai.utils.module.os.mkdir", "path": "CANARY/x"},
    "target through monai.data": {"_target_": "monai.data.utils.os.mkdir", "path": "CANARY/x"},
    "target through monai.handlers": {"_target_": "monai.handlers.utils.os.mkdir", "path": "CANARY/x"},
    "target through ignite": {"_target_": "ignite.handlers.checkpoint.os.mkdir", "path": "CANARY/x"},
    "target through medseg": {"_target_": "medseg.training.metrics_log.os.mkdir", "path": "CANARY/x"},
    "target of medseg that writes": {"_target_": "medseg.files.write_text", "path": "CANARY/x", "text": "x"},
    "target builtins.open": {"_target_": "builtins.open", "file": "CANARY/x", "mode": "w"},
    "target os.open": {"_target_": "os.open", "path": "CANARY/x", "flags": 577},
    "target shelve": {"_target_": "shelve.open", "filename": "CANARY/x"},
    "target io.open": {"_target_": "io.open", "file": "CANARY/x", "mode": "w"},
    "target subprocess": {"_target_": "subprocess.Popen", "args": ["touch", "CANARY/x"]},
    "target shutil": {"_target_": "shutil.move", "src": "CANARY/victim", "dst": "CANARY/moved"},
    "target socket": {"_target_": "socket.create_connection", "address": "$('127.0.0.1', 9)"},
    "target urllib": {"_target_": "urllib.request.urlopen", "url": "http://127.0.0.1:9/x"},
    "target sqlite3": {"_target_": "sqlite3.connect", "database": "CANARY/x"},
    "target ctypes": {"_target_": "ctypes.CDLL", "name": "CANARY/secret"},
    "target runpy": {"_target_": "runpy.run_path", "path_name": "CANARY/secret"},
    "target numpy.load": {"_target_": "numpy.load", "file": "CANARY/secret", "allow_pickle": True},
    "target torch.load": {"_target_": "torch.load", "f": "CANARY/secret", "weights_only": False},
    "target torch.save": {"_target_": "torch.save", "obj": 1, "f": "CANARY/x"},
    "target torch.hub": {"_target_": "torch.hub.download_url_to_file", "url": "file:///dev/null", "dst": "CANARY/x"},
    "target run_cmd": {"_target_": "monai.utils.misc.run_cmd", "cmd_list": ["touch", "CANARY/x"]},
    "target by an expression": {"_target_": "$'os.' + 'mkdir'", "path": "CANARY/x"},
    "target that is a function": {"_target_": "$torch.os.mkdir", "path": "CANARY/x"},
    "target deep inside": {**_STATS, "name": {"a": [{"b": {"_target_": "os.mkdir", "path": "CANARY/x"}}]}},
    "target in _requires_": {**_STATS, "_requires_": [{"_target_": "os.mkdir", "path": "CANARY/x"}]},
    "target in _desc_": {**_STATS, "_desc_": {"_target_": "os.mkdir", "path": "CANARY/x"}},
    "target switched off by itself": {**_STATS, "_disabled_": {"_target_": "os.mkdir", "path": "CANARY/x"}},
    "in the debugger": {"_target_": "torch.device", "_mode_": "debug", "type": "$torch.os.mkdir('CANARY/x')"},
    "reader": _touch(_target_="LoadImage", reader="subprocess.Popen"),
    "reader of a dictionary transform": _touch(_target_="LoadImaged", keys="image", reader="subprocess.Popen"),
    "reader in a list": _touch(_target_="LoadImage", reader=["subprocess.Popen"]),
    "reader by its full target": _touch(_target_="monai.transforms.io.array.LoadImage", reader="subprocess.Popen"),
    "reader by a function": _touch(_target_="LoadImage", reader={"_target_": _FIRST, "iterable": ["subprocess.Popen"]}),
    "reader by another function": _touch(
        _target_="LoadImage", reader={"_target_": "monai.utils.ensure_tuple", "vals": ["subprocess.Popen"]}
    ),
    "reader by a maximum": _touch(_target_="LoadImage", reader="$max(['subprocess.Popen'])"),
    "readers by a function in a list": _touch(
        _target_="LoadImage", reader=[{"_target_": _FIRST, "iterable": ["subprocess.Popen"]}]
    ),
    "writer of events": {"_target_": "TensorBoardStatsHandler", "log_dir": "CANARY/d"},
    "writer of pictures": {"_target_": "TensorBoardImageHandler", "log_dir": "CANARY/d"},
    "writer of events by torch": {"_target_": "torch.utils.tensorboard.SummaryWriter", "log_dir": "CANARY/d"},
    "writer of events by ftp": {"_target_": "torch.utils.tensorboard.SummaryWriter", "log_dir": "ftp://127.0.0.1:9/x"},
    "writer of events by memory": {"_target_": "TensorBoardStatsHandler", "log_dir": "$'ft' + 'p://127.0.0.1:9/x'"},
    "writer of events above": {"_target_": "TensorBoardStatsHandler", "log_dir": "$@bundle_root + '/../canary/d'"},
    "cache": {"_target_": "PersistentDataset", "data": [1], "transform": [], "cache_dir": "CANARY/d"},
    "cache of several": {
        "_target_": "CacheNTransDataset",
        "data": [1],
        "transform": [],
        "cache_n_trans": 1,
        "cache_dir": "CANARY/d",
    },
    "cache in _requires_": {
        **_STATS,
        "_requires_": [{"_target_": "PersistentDataset", "data": [1], "transform": [], "cache_dir": "CANARY/d"}],
    },
    "weights by a network's default": {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0"},
    "weights of a feature network": {"_target_": "EfficientNetBNFeatures", "model_name": "efficientnet-b0"},
    "weights by a switch": {
        "_target_": "DenseNet121",
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 2,
        "pretrained": True,
    },
    "weights by an expression": {
        "_target_": "monai.networks.nets.DenseNet121",
        "spatial_dims": 2,
        "in_channels": 3,
        "out_channels": 2,
        "pretrained": "$1 == 1",
    },
    "weights of SENet": {
        "_target_": "SENet154",
        "spatial_dims": 2,
        "in_channels": 3,
        "num_classes": 1000,
        "pretrained": True,
    },
    "weights of a flexible network": {
        "_target_": "FlexibleUNet",
        "in_channels": 3,
        "out_channels": 2,
        "backbone": "efficientnet-b0",
        "spatial_dims": 2,
        "pretrained": True,
    },
    "weights from a file outside": {"_target_": "resnet10", "pretrained": "CANARY/secret"},
    "weights of an encoder outside": {
        "_target_": "medseg.training.FeatureEncoder",
        "weights": "CANARY/secret",
        "features": [4, 4, 4, 4, 4],
    },
    "weights of another checkpoint": {"_target_": "medseg.networks.read_checkpoint", "source": "CANARY/secret"},
    "a checkpoint outside": {
        "_target_": "medseg.training.started",
        "network": "@network",
        "init": "CANARY/secret",
    },
    "a list of cases": {"_target_": "monai.data.load_decathlon_datalist", "data_list_file_path": "CANARY/secret"},
}
"""Values that are a component."""

_ENDLESS = {
    "an endless sum": "sum(range(10**11))",
    "an endless iterator": "sum(iter(int, 1))",
    "an endless list": "list(iter(int, 1))",
    "a product": "sum(1 for _ in itertools.product(range(99), repeat=9))",
    "a long text": "len('a' * 10**11)",
    "a long list": "len([0] * 10**11)",
    "a long tuple by a list": "len(list(range(10**11)))",
    "a set": "len(set(range(10**10)))",
    "a sorted range": "len(sorted(range(10**10)))",
    "a filled text": "len('a'.zfill(10**11))",
    "a wide format": "len(f'{1:99999999999}')",
    "powers of powers": "((9 ** 16) ** 16) ** 16 ** 1 and (((((9 ** 16) ** 16) ** 16) ** 16) ** 16) ** 16 > 0",
    "factors that grow": "[(i * i) for i in [9**16 * 9**16]] and sum(i ** 16 for i in range(10**9))",
    "comprehensions in each other": "sum(1 for a in range(9999) for b in range(9999) for c in range(9999))",
    "a tensor": "torch.ones(10**12).sum()",
    "a tensor by a product": "torch.ones(10**4, 10**4, 10**4)",
    "a tensor that is repeated": "torch.ones(10**4).repeat(10**8)",
    "a tensor of texts": "torch.arange(10**12)",
    "an array": "numpy.ones(10**12).sum()",
    "an array of an interval": "numpy.arange(10**12)",
    "an array that is stacked": "numpy.linspace(0, 1, 10**12)",
    "all files": "len(glob.glob('/**/*/**/*/**', recursive=True))",
    "all files by a keyword": "len(glob.glob('**/*/**/*/**', root_dir='/', recursive=True))",
    "all files by a map": "sum(map(lambda p: len(glob.glob(p, recursive=True)), ['/**/*/**/*/**']))",
    "all links": "len(list(glob.iglob('/proc/self/root/**/root/**', recursive=True)))",
    "a loop of maps": "max(map(abs, iter(int, 1)))",
    "any of an endless iterator": "any(iter(int, 1))",
    "a text of texts": "len(','.join(map(str, iter(int, 1))))",
    "a file that waits": "torch.load('CANARY/fifo', weights_only=True)",
    "a lambda on a range": "sum(map(lambda i: i, range(10**11)))",
}
ENDLESS: dict[str, str] = dict(_ENDLESS)
"""Expressions that take all time or all memory."""
