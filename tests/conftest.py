"""One thread, which is quickest for tensors this small, fixed seeds, and warnings that are heard.

With MIXERFLOW_CHECK_TYPES=1 every annotated call is checked, shapes too; compilation cannot be
tested then. Without a GPU its kernels run in Triton's interpreter.
"""

import gc
import os
import sys

import pytest
import torch

if os.environ.get("MIXERFLOW_CHECK_TYPES") == "1":
    from jaxtyping import install_import_hook

    install_import_hook("mixerflow", "beartype.beartype")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, beside others
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of them compiles the source again

# No test cuts the power, and each of some thousands of waits for the disk takes milliseconds. Tests
# of full disks, and of the order in which files are written, put their own function here.
os.fsync = lambda descriptor: None

# A forked child that collects what its parent left, stores and sessions with threads that the child
# does not have, is killed by it. Frozen, it is nobody's to collect.
_OWNER = os.getpid()
os.register_at_fork(
    before=gc.freeze, after_in_parent=lambda: gc.unfreeze() if os.getpid() == _OWNER else None
)


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)  # a test that ran before may have asked for more
    torch.manual_seed(0)
    memory = sys.modules.get("mixerflow.core.memory")
    if memory is not None:
        memory._warn_once.cache_clear()  # a test must hear what another one has heard
