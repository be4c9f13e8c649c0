"""What processes tell each other, and that one alone tells nobody."""

from __future__ import annotations

import os
import socket
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


LAUNCHED = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
            "MASTER_PORT": "1"}  # fmt: skip


@pytest.fixture
def launched(monkeypatch) -> list[tuple]:
    """The environment of one of several processes; what joining them calls."""
    calls: list[tuple] = []
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(distributed.atexit, "register", lambda _function: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(distributed, "gather", lambda machine: [machine, machine, "elsewhere", "elsewhere"])
    for owner, name in ((torch, "set_num_threads"), (torch.cuda, "set_device"),
                        (torch.distributed, "init_process_group")):  # fmt: skip
        monkeypatch.setattr(owner, name, lambda value, name=name: calls.append((name, value)))
    return calls


def test_processes_share_the_cores_of_a_machine(launched, monkeypatch):
    assert distributed.join_processes("cpu") == torch.device("cpu")
    assert launched == [("init_process_group", "gloo"), ("set_num_threads", 2)]
    launched.clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    distributed.join_processes("cpu")
    assert launched == [("init_process_group", "gloo")]


def test_each_process_of_a_machine_has_its_own_gpu(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert distributed.join_processes() == torch.device("cuda", 1)
    assert launched == [("set_device", 1), ("init_process_group", "cpu:gloo,cuda:nccl")]


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "RANK"), ("cpu", "MASTER_ADDR"), ("cpu", "MASTER_PORT"), ("cuda", "LOCAL_RANK")],
)
def test_a_variable_that_the_launcher_has_not_set_is_one_line(launched, monkeypatch, device, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(name)
    with pytest.raises(distributed.DeviceError, match=f"WORLD_SIZE is set, but not {name}; .* torchrun"):
        distributed.join_processes(device)
    assert launched == []


def test_a_cpu_needs_no_number_on_its_machine(launched, monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    distributed.join_processes("cpu")
    assert launched == [("init_process_group", "gloo"), ("set_num_threads", 2)]


def test_a_port_in_use_is_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**LAUNCHED, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(distributed.DeviceError, match=f"cannot connect at localhost:{port}: .*") as error:
            distributed.join_processes("cpu")
    assert "\n" not in str(error.value)


def test_devices():
    assert distributed.best_device("cpu") == torch.device("cpu")
    assert distributed.best_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device 'abacus': this machine has none; choose one of"):
        distributed.best_device("abacus")
