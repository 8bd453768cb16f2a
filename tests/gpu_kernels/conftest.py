"""The device of tensors: a CPU, in torch or under Triton's interpreter (`test_interpreter.py`), and a GPU if there is one."""

import pytest
import torch


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)
