"""A device that is none: its tensors say that they do not lie on the CPU, and refuse to meet those that do.

Where no GPU is at hand, this is how the code for one is run all the same: ``with PretendDevice() as device`` gives a
device (its name is torch's ``meta``) whose tensors hold values, computed on the CPU, so that results can be compared to
the bit. As on a GPU, an operation on tensors of both devices is an error (but for CPU scalars, and CPU indices into a
tensor of the device), and so is ``.numpy()``. What a GPU rounds otherwise, lacks or does faster is not seen.

The context counts, by device, the multiply-adds of matrix products and convolutions.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

NAME = "meta"
aten = torch.ops.aten
_BETWEEN = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class There(Tensor):
    """A tensor of the device; ``here`` has its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made: There = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=NAME
        )
        made.here = here
        return made

    def tolist(self) -> Any:
        """Return the values, as torch does of any device."""
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation with the values, and say of what it gives where that lies."""
    flat, spec = tree_flatten((args, kwargs))
    there = [x for x in flat if isinstance(x, There)]
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, There)]
    wanted = kwargs.get("device")
    if any(x.device.type == NAME for x in here):
        raise RuntimeError(f"{func}: a tensor without values: this way to make one is not known to the pretence")
    if there and here and func not in _BETWEEN:
        allowed = func in _INDEXED and isinstance(args[0], There)
        if not allowed and any(x.ndim for x in here):
            shapes = [tuple(x.shape) for x in flat if isinstance(x, Tensor)]
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, got both, {shapes}")
    args, kwargs = tree_unflatten([x.here if isinstance(x, There) else x for x in flat], spec)
    if wanted is not None and torch.device(wanted).type == NAME:
        kwargs["device"] = torch.device("cpu")
    out = func(*args, **kwargs)
    if func is aten.copy_.default:
        to_there = isinstance(flat[0], There)
    else:
        to_there = bool(there) if wanted is None else torch.device(wanted).type == NAME
    by_values = {id(x.here): x for x in there}

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, There) or not to_there:
            return x
        known = by_values.get(id(x))
        return There(x) if known is None else known

    return tree_map(placed, out)


class _Literals(TorchFunctionMode):
    """Lists become tensors of the device by way of the CPU; torch itself would leave them without values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


class PretendDevice(TorchDispatchMode):
    """Context in which there is such a device.

    Attributes:
        operations: by device (``meta``, ``cpu``), floating-point operations of products and convolutions.
        largest: by device, the name and operations of the largest one.
        looks: how often a value of the device was looked at, for which a GPU is waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.largest: dict[str, tuple[int, str]] = {}
        self.looks = 0
        self._literals = _Literals()

    def __enter__(self) -> PretendDevice:
        super().__enter__()
        self._literals.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._literals.__exit__(*raised)
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = run(func, args, kwargs or {})
        self.looks += func is aten._local_scalar_dense.default and isinstance(args[0], There)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            device = NAME if any(isinstance(x, There) for x in tree_flatten(args)[0]) else "cpu"
            flops = int(count(*args, **(kwargs or {}), out_val=out))
            self.operations[device] += flops
            self.largest[device] = max(self.largest.get(device, (0, "")), (flops, str(func)))
        return out
