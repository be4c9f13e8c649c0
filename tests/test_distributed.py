"""What processes tell each other, and that one alone tells nobody."""

from __future__ import annotations

import os
import traceback

import pytest
import torch

from opendetr import distributed


def test_one_process_is_the_main_one():
    value = torch.tensor([1.0, 2.0])
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.reduce_sum(value) is value
    assert distributed.gather("here") == ["here"]


def talk(rank: int, meeting: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    value = torch.tensor([1.0, rank])
    assert distributed.reduce_sum(value).tolist() == [2.0, 1.0] and value.tolist() == [1.0, rank]
    assert distributed.gather({"rank": distributed.rank()}) == [{"rank": 0}, {"rank": 1}]
    assert distributed.world_size() == 2 and distributed.is_main() == (rank == 0)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes(tmp_path):
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                talk(rank, str(tmp_path / "meeting"))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_devices():
    assert distributed.best_device("cpu") == torch.device("cpu")
    assert distributed.best_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device 'abacus': this machine has none; choose one of"):
        distributed.best_device("abacus")
