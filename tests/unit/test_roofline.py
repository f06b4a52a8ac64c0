"""What a pass costs, counted in a real one; and jobs on several devices."""

from itertools import permutations
from typing import Any

import pytest
import torch
from headpursuit.method.decoder import Decoder
from headpursuit.method.reading import new_cache
from headpursuit.method.writing import Rows, gather
from headpursuit.run import roofline
from headpursuit.run.roofline import (
    DEVICES,
    KERNELS,
    MOVED,
    Cost,
    Device,
    Job,
    Model,
    processor,
    rows_at_once,
    wall_seconds,
)
from headpursuit.run.workload import HIGH, LOW
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, MistralConfig

ROWS, TOKENS = 4, 32
PRODUCTS = ("mm", "linear", "addmm", "bmm", "scaled_dot_product")


class Counted(TorchDispatchMode):
    """Counts operations that make something new, and the bytes of those that do not multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None) -> Any:
        made = operation(*args, **(kwargs or {}))
        given, out = (
            [own for own in tree_leaves(tree) if isinstance(own, Tensor)]
            for tree in ((args, kwargs), made)
        )
        there = {own.untyped_storage().data_ptr() for own in given}
        if any(own.untyped_storage().data_ptr() not in there for own in out):
            self.kernels += 1
            if not any(name in operation.name() for name in PRODUCTS):
                self.bytes += sum(own.numel() * own.element_size() for own in [*given, *out])
        return made


@torch.no_grad()
def counted(layers: int, width: int, behind: int = 0) -> Counted:
    """Return what a pass of Mistral's proportions takes, in bfloat16.

    It reads, or writes one token of each row ``behind`` so many that were read.
    """
    config = MistralConfig(
        hidden_size=width, intermediate_size=7 * width // 2, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, head_dim=width // 8, vocab_size=50,
        sliding_window=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(3, 50, (ROWS, behind or TOKENS))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    asked: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if behind:
        decoder = Decoder(model)
        kept = new_cache(decoder)
        for layer in range(layers):
            kept.update(*torch.randn(2, ROWS, 2, behind, width // 8, dtype=model.dtype), layer)
        rows = Rows(kept, torch.zeros(ROWS, width), ids[:, -1:], mask)
        cache = gather(decoder, [rows], 1).cache
        mask = torch.cat([mask, mask[:, -1:]], dim=1)
        asked = {"input_ids": ids[:, :1], "attention_mask": mask, "past_key_values": cache}
    with Counted() as found:
        model.model(**asked)
    return found


def test_a_layers_kernels_and_bytes_are_those_of_a_pass() -> None:
    two, four = counted(2, 256), counted(4, 256)
    assert pytest.approx((four.kernels - two.kernels) / 2, rel=0.1) == KERNELS
    moved = (four.bytes - two.bytes) / 2 / (ROWS * TOKENS * 2 * 256)
    assert pytest.approx(moved, rel=0.1) == MOVED


def test_a_step_of_writing_copies_no_keys_and_values() -> None:
    few, many = (counted(4, 512, own).bytes - counted(2, 512, own).bytes for own in (40, 400))
    kept = 2 * 2 * 360 * ROWS * 512 / 4 * 2  # of two layers, for what is behind in addition
    assert many - few < 0.01 * kept


def test_time_is_that_of_work_or_of_launches() -> None:
    device, given = Device(1e12, 1e9, 1e9), LOW
    assert Cost(7e12).seconds(device, given) == pytest.approx(10)
    assert Cost(7e12, 1.7e9).seconds(device, given) == pytest.approx(12)
    assert Cost(7e12, 1.7e9, 1e6).seconds(device, given) == pytest.approx(12)
    assert Cost(7e12, 1.7e9, 2e6).seconds(device, given) == pytest.approx(20)
    assert Cost(7e12).seconds(device, HIGH) > 10


def test_rows_that_memory_holds() -> None:
    mistral = Model(7.24e9, 32, 4096, 2)
    assert mistral.kept == 131072  # 32 layers, 8 of 32 heads of 128 keys and values, 2 bytes
    assert rows_at_once(mistral, DEVICES["H100"], 1300, 128) == 128
    small = rows_at_once(mistral, DEVICES["RTX 4090"], 1300, 128)
    assert 1 < small < 128
    assert 1.1 * mistral.weights + small * 1300 * mistral.kept == pytest.approx(0.9 * 24e9)
    assert rows_at_once(mistral, Device(1, 1, 1e9), 1300, 128) == 1


def test_jobs_on_one_device_take_their_sum_and_on_many_their_longest_chain() -> None:
    jobs = {name: Job("respond", 1.0 + i, "gpu") for i, name in enumerate("abc")}
    jobs["d"] = Job("label", 5.0, "gpu", ("a",))
    jobs["e"] = Job("rank", 2.0, "cores", ("c", "d"))
    jobs["f"] = Job("split", 100.0, None)
    assert wall_seconds(jobs, {"gpu": 1, "cores": 1}) == 100
    del jobs["f"]
    assert wall_seconds(jobs, {"gpu": 1, "cores": 1}) == 1 + 5 + 3 + 2 + 2 - 2  # b beside e
    assert wall_seconds(jobs, {"gpu": 8, "cores": 8}) == 1 + 5 + 2
    assert wall_seconds({}, {"gpu": 1}) == 0


def test_list_scheduling_is_near_the_best_order() -> None:
    lengths = [7.0, 6, 5, 4, 3, 2]
    jobs = {i: Job("respond", own, "gpu") for i, own in enumerate(lengths)}
    best = min(
        max(sum(order[:cut]), sum(order[cut:]))
        for order in permutations(lengths)
        for cut in range(len(lengths))
    )
    assert best <= wall_seconds(jobs, {"gpu": 2}) <= best * 4 / 3


def test_a_part_has_its_share_and_loads_again() -> None:
    job = Job("respond", 9.0, "gpu", (), 30, 60, Cost(3, 6, 9), 2.0)
    part = job.of(3, ("a",))
    assert (part.seconds, part.read, part.written) == (5, 10, 20)
    assert part.cost == (1, 2, 3) and part.after == ("a",)


@pytest.mark.parametrize(("has_it", "used"), [(True, torch.bfloat16), (False, torch.float32)])
def test_products_are_measured_as_models_have_them(monkeypatch, has_it: bool, used) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it)
    done = []
    monkeypatch.setattr(roofline, "_best", lambda work: done.append(work()) or 1.0)
    processor.__wrapped__(1, "bfloat16", None)
    assert done[0].dtype == used


def test_this_machines_processor_is_measured() -> None:
    found = processor(1, "float32", "bfloat16")
    assert 1e8 < found.operations < 1e13 and 1e7 < found.bandwidth < 1e12 and not found.gpu
