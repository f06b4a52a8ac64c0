"""How long a device takes: by its operations and bytes, or by its kernel launches.

And how long a run's jobs take on several of them.
"""

import heapq
import timeit
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from graphlib import TopologicalSorter
from typing import NamedTuple

# Of a layer of Mistral's proportions in one forward pass, counted by tests/unit/test_roofline.py:
# kernels, and what they move beside matrix products, in vectors of the residual stream a token.
KERNELS, MOVED = 43, 76
# For the low end of an estimate, and for the high end.
ASSUMED = {
    "share of a device's operations that matrix products reach": (0.7, 0.55),
    "share of a device's bytes a second that are reached": (0.85, 0.6),
    "seconds from one kernel launch to the next, on a GPU": (1e-5, 2e-5),
    "seconds from one operation to the next, on a processor": (3e-6, 1e-5),
    "bytes of weights a second from disk to device": (3e9, 1e9),
    "seconds until a job's libraries are loaded": (5, 15),
}


class Device(NamedTuple):
    """What a device does at most, by its maker."""

    operations: float  # a second, dense bfloat16
    bandwidth: float  # bytes a second, of its memory
    memory: float  # bytes
    gpu: bool = True


DEVICES = {
    "H100": Device(9.89e14, 3.35e12, 80e9),  # SXM5
    "A100": Device(3.12e14, 2.04e12, 80e9),  # SXM4, 80 GB
    "RTX 4090": Device(1.65e14, 1.01e12, 24e9),
}


class Cost(NamedTuple):
    """What one kind of work takes."""

    operations: float = 0
    bytes: float = 0  # read and written
    launches: float = 0  # of kernels

    def seconds(self, device: Device, given: Mapping[str, float]) -> float:
        """Return the time under one end's assumptions.

        Kernels run one after the other, some of which multiply and others only move bytes. The
        next one is launched meanwhile.
        """
        kind = "kernel launch to the next, on a GPU"
        if not device.gpu:
            kind = "operation to the next, on a processor"
        share = given["share of a device's operations that matrix products reach"]
        reached = given["share of a device's bytes a second that are reached"]
        working = self.operations / (device.operations * share)
        working += self.bytes / (device.bandwidth * reached)
        return max(working, self.launches * given[f"seconds from one {kind}"])


class Model(NamedTuple):
    """What of a model decides its cost."""

    parameters: float
    layers: int
    width: float  # of the residual stream
    bytes: float  # of a number at work
    bits: float | None = None  # of a quantised weight

    @property
    def weights(self) -> float:
        """Bytes of all parameters."""
        return self.parameters * (self.bits / 8 if self.bits else self.bytes)

    @property
    def moved(self) -> float:
        """Bytes that a token moves beside matrix products."""
        return MOVED * self.layers * self.width * self.bytes

    @property
    def kept(self) -> float:
        """Bytes of keys and values of a token, where four query heads share each."""
        return 2 * self.layers * self.width * self.bytes / 4


def reading(model: Model, tokens: float, each: float, at_once: float, share: float = 1) -> Cost:
    """Return what reading takes.

    Args:
        model: that reads.
        tokens: in all.
        each: of a sample.
        at_once: of a batch.
        share: of the layers that they go through.
    """
    calls = tokens / at_once
    # Two operations a parameter; a token attends to half of its sample on average, by two products.
    attention = 4 * model.layers * model.width * each / 2
    return Cost(
        tokens * share * (2 * model.parameters + attention),
        share * (calls * model.weights + tokens * model.moved),
        calls * share * model.layers * KERNELS,
    )


def writing(model: Model, steps: float, rows: float, each: float) -> Cost:
    """Return what writing takes, one token of each row a step, ``each`` tokens a row being kept.

    The attention reads the keys and values of a row once.
    """
    return Cost(
        steps * rows * (2 * model.parameters + 4 * model.layers * model.width * each),
        steps * (model.weights + rows * (each * model.kept + model.moved)),
        steps * model.layers * KERNELS,
    )


def rows_at_once(model: Model, device: Device, each: float, most: float) -> float:
    """Return for how many rows of ``each`` tokens there is room beside a model, at least one."""
    if not device.memory:  # the machine's own
        return most
    room = 0.9 * device.memory - 1.1 * model.weights
    return max(1.0, min(most, room / (each * model.kept)))


# Jobs


class Job(NamedTuple):
    """A job: its rule, what it takes, where it runs, and the jobs whose files it reads."""

    rule: str
    seconds: float
    place: str | None  # "gpu", "cores", or None: too little to count
    after: tuple[Hashable, ...] = ()
    read: float = 0  # tokens
    written: float = 0
    cost: Cost = Cost()
    loading: float = 0  # seconds that each part takes besides

    def of(self, parts: int, after: tuple[Hashable, ...]) -> "Job":
        """Return one of so many parts, with all its seconds, behind other jobs."""
        return self._replace(
            seconds=self.seconds / parts + self.loading,
            after=after,
            read=self.read / parts,
            written=self.written / parts,
            cost=Cost(*(own / parts for own in self.cost)),
        )


def wall_seconds(jobs: Mapping[Hashable, Job], places: Mapping[str, int]) -> float:
    """Return how long jobs take where so many run at once in each place.

    Of the jobs that are ready, the one goes first behind which most is to be done: list scheduling.
    """
    then: dict[Hashable, list[Hashable]] = {key: [] for key in jobs}
    for key, job in jobs.items():
        for own in job.after:
            then[own].append(key)

    @cache
    def behind(key: Hashable) -> float:
        return jobs[key].seconds + max(map(behind, then[key]), default=0.0)

    order = TopologicalSorter({key: job.after for key, job in jobs.items()})
    order.prepare()
    ready, free, now, ends = [], dict(places), 0.0, []
    while order.is_active():
        ready += order.get_ready()
        for key in sorted(ready, key=behind, reverse=True):
            place = jobs[key].place
            if place is None or free[place]:
                ready.remove(key)
                if place is not None:
                    free[place] -= 1
                heapq.heappush(ends, (now + jobs[key].seconds, len(ends), str(key), key))
        now, *_, key = heapq.heappop(ends)
        order.done(key)
        if (place := jobs[key].place) is not None:
            free[place] += 1
    return now


# This machine


@cache
def processor(threads: int, dtype: str, products: str | None) -> Device:
    """Measure this machine's processor: a large matrix product, and a copy in memory.

    It multiplies in ``products`` where it is fast in it, else in the model's ``dtype``, or float32
    where it lacks that: as models do. Where there is no torch, numpy multiplies, in float32.
    """
    size = 1024
    try:
        import torch

        half = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype)
        torch.set_num_threads(threads)
        if products and torch.cpu.get_capabilities().get("avx512_bf16", False):
            dtype = products
        elif half and not getattr(torch.ops.mkldnn, f"_is_mkldnn_{half}_supported")():
            dtype = "float32"
        a = torch.ones(size, size, dtype=getattr(torch, dtype))
        here, there = torch.ones(2**24), torch.ones(2**24)
        product, copy = (lambda: a @ a), (lambda: there.copy_(here))
    except (ImportError, OSError):
        import numpy as np

        a = np.ones((size, size), np.float32)
        here, there = np.ones(2**24, np.float32), np.ones(2**24, np.float32)
        product, copy = (lambda: a @ a), (lambda: np.copyto(there, here))
    return Device(2 * size**3 / _best(product), 2 * 4 * 2**24 / _best(copy), 0, False)


def _best(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of five rounds, behind one that does not count."""
    return min(timeit.repeat(work, number=1, repeat=6)[1:])
