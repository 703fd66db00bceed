"""What a start does not import: modules that take seconds and that it has no use for.

Each case is a process of its own, which prints the modules that it ended with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.tiny_run import tiny_config

pytestmark = pytest.mark.long

TORCH = {"torch", "numpy", "pyarrow"}
TRAINING = {"transformers.modeling_utils", "peft"}
QUANTISED = {"bitsandbytes", "torch._inductor.compile_fx"}
RAY = {"ray", "pandas"}
_SHOW = "\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"


def modules_after(code: str, *arguments: str, **environment: str) -> set[str]:
    """All modules of a process that ran some code; a command's own output comes before."""
    done = subprocess.run(
        [sys.executable, "-c", code + _SHOW, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments: str) -> str:
    """Code that runs `causal ARGUMENTS` to its end."""
    return (
        "from typer.main import get_command\nfrom ray_jobs.cli import app\n"
        f"get_command(app)({list(arguments)!r}, standalone_mode=False)"
    )


@pytest.fixture
def config(tiny_model_directory, tiny_data, tmp_path):
    return tiny_config(tiny_model_directory, tiny_data, tmp_path / "run")


@pytest.mark.parametrize("arguments", [["--help"], ["data", "check", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    # Help leaves through SystemExit, wherever it stands.
    code = f"try:\n    {command(*arguments).replace(chr(10), chr(10) + '    ')}\n"
    found = modules_after(code + "except SystemExit:\n    pass")
    assert not found & (TORCH | TRAINING | QUANTISED | RAY)
    assert not found & {"transformers", "rich.table", "urllib.request"}


def test_what_a_driver_imports_to_begin_with_computes_nothing():
    found = modules_after("import ray_jobs.run, ray_jobs.demo, ray_jobs.plan.command")
    assert not found & (TRAINING | QUANTISED | RAY)


@pytest.fixture(scope="module")
def planned(tiny_model_directory, tiny_data, tmp_path_factory):
    """A config that was never planned before, and the modules of a process that planned it and made
    an 8-bit optimizer after it."""
    folder = tmp_path_factory.mktemp("planned")
    config = tiny_config(tiny_model_directory, tiny_data, folder / "run")
    config.data.cache_dir = str(folder / "cache")  # where no other test has planned
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    code = (
        f"\nassert sys.modules.keys() >= {TRAINING!r}\n"
        "import torch\nfrom causal_core.config import TrainSection\n"
        "from causal_core.engines.optimizer import build_optimizer\n"
        "parameters = {'one': torch.nn.Parameter(torch.zeros(2, 2))}\n"
        "train = TrainSection(optimizer='adamw_8bit')\n"
        "build_optimizer(parameters, train, torch.device('cpu'))"
    )
    return path, modules_after("import sys\n" + command("plan", str(path)) + code)


def test_a_plan_that_is_known_and_data_that_are_tokenised_need_no_transformers(planned):
    again = modules_after(command("plan", str(planned[0])))
    assert not again & (TRAINING | QUANTISED | RAY)
    assert not {name for name in again if name.partition(".")[0] == "transformers"}


def test_a_plan_and_an_8_bit_optimizer_do_without_torch_s_compiler(planned):
    """bitsandbytes would import it for functions that are decorated and not called."""
    assert "bitsandbytes" in planned[1]
    assert "torch._inductor.compile_fx" not in planned[1]


def test_a_plain_float32_model_needs_no_bitsandbytes_and_a_quantised_one_after_it_does(
    config, tmp_path
):
    """PEFT keeps its answer whether bitsandbytes is there: it must be asked again."""
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    code = (
        "import json, sys, torch\n"
        "from causal_core.config_file import load_config\n"
        "from causal_core.model.causal_model import build_model\n"
        "from causal_core.pretrained.loading import load_base\n"
        "from causal_core.run.session import open_session\n"
        "cpu = torch.device('cpu')\n"
        "config = load_config(sys.argv[1], [])\n"
        "session = open_session(config, cpu)\n"  # with its optimizer
        "assert session.engine.parameters\n"
        f"assert sys.modules.keys() >= {TRAINING!r}\n"
        f"assert not sys.modules.keys() & {QUANTISED!r}\n"
        "nf4 = config.model.model_copy(update={'quantization': 'nf4'})\n"
        "model = build_model(load_base(nf4, cpu), config.lora, 0)\n"
        "from peft.tuners.lora.bnb import Linear4bit\n"
        "assert any(isinstance(m, Linear4bit) for m in model.modules())\n"
    )
    assert "bitsandbytes" in modules_after(code, str(path))


def test_what_bitsandbytes_wants_compiled_is_compiled_when_it_is_called():
    code = (
        "import torch\nfrom causal_core.quantised import bitsandbytes\n"
        "asked = []\n"
        "def compiled(function, **options):\n"
        "    asked.append((function.__name__, options))\n"
        "    return function\n"
        "torch.compile = compiled\n"
        "bitsandbytes()\n"
        "assert torch.compile is compiled and not asked\n"
        "from bitsandbytes.backends.default.ops import _dequantize_blockwise_compute as read\n"
        "lowest = torch.zeros(256, dtype=torch.uint8), 3 * torch.ones(1)\n"
        "for _ in range(2):\n"
        "    found = read(*lowest, torch.linspace(-1, 1, 256), 256, torch.float32)\n"
        "    assert (found == -3).all()\n"
        "    assert asked == [('_dequantize_blockwise_compute', {'dynamic': False})]\n"
    )
    modules_after(code)
