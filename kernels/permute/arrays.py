"""torch tensors and CuPy arrays behind one face: addresses, strides, streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kdsl.errors import InputError, UnsupportedError
from kdsl.kernels.launching.place import place


class Arrays(ABC):
    """What the launcher needs to know of arrays on one GPU."""

    device: int
    """Number of the GPU."""

    @abstractmethod
    def owns(self, x: Any) -> bool:
        """Whether an array is of this kind and on this GPU."""

    @abstractmethod
    def dtype(self, x: Any) -> str:
        """The dtype's name, ``"bfloat16"``."""

    @abstractmethod
    def address(self, x: Any) -> int:
        """Of the first element."""

    @abstractmethod
    def item(self, x: Any) -> int:
        """Bytes of an element."""

    @abstractmethod
    def strides(self, x: Any) -> tuple[int, ...]:
        """In bytes."""

    @abstractmethod
    def contiguous(self, x: Any) -> bool:
        """Whether elements follow each other in row-major order."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Memory as it comes."""

    @abstractmethod
    def zeros(self, words: int) -> Any:
        """32-bit zeros, filled on the current stream."""

    @abstractmethod
    def upload(self, values: Any, dtype: str) -> Any:
        """Contiguous values of a dtype on this GPU."""

    @abstractmethod
    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""

    def capability(self) -> tuple[int, int]:
        """Compute capability of the GPU."""
        import cupy

        major_minor = int(cupy.cuda.Device(self.device).compute_capability)
        return divmod(major_minor, 10)

    @abstractmethod
    def stream(self) -> AbstractContextManager[Any]:
        """This GPU and its current stream as CuPy's."""

    def refuse_capture(self, what: str) -> None:
        """UnsupportedError during a capture, when something is left that cannot be captured."""
        if self.capturing():
            raise UnsupportedError(
                f"{what}, and a graph is being captured",
                hint="one call, or prepare(x), before the capture",
            )


class _Handle:
    """A stream by its address, in the form that libraries of CUDA pass streams."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


class TorchArrays(Arrays):
    """Tensors of torch, whose current stream launches use."""

    def __init__(self, x: Any) -> None:
        import torch

        if x.device.type != "cuda":
            raise InputError(f"x is on {x.device}, the kernel runs on a GPU", hint="x.cuda()")
        self.torch, self._device, self.device = torch, x.device, int(x.device.index)

    def owns(self, x: Any) -> bool:  # noqa: D102
        return isinstance(x, self.torch.Tensor) and x.device == self._device

    def dtype(self, x: Any) -> str:  # noqa: D102
        return str(x.dtype).removeprefix("torch.")

    def address(self, x: Any) -> int:  # noqa: D102
        return int(x.data_ptr())

    def item(self, x: Any) -> int:  # noqa: D102
        return int(x.element_size())

    def strides(self, x: Any) -> tuple[int, ...]:  # noqa: D102
        return tuple(n * x.element_size() for n in x.stride())

    def contiguous(self, x: Any) -> bool:  # noqa: D102
        return bool(x.is_contiguous())

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:  # noqa: D102
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=self._device)

    def zeros(self, words: int) -> Any:  # noqa: D102
        return self.torch.zeros(words, dtype=self.torch.int32, device=self._device)

    def upload(self, values: Any, dtype: str) -> Any:  # noqa: D102
        held = values if self.owns(values) else self.torch.from_numpy(values.copy())
        return held.to(device=self._device, dtype=getattr(self.torch, dtype)).contiguous()

    def capturing(self) -> bool:  # noqa: D102
        return place("cuda").capturing()

    @contextmanager
    def stream(self) -> Iterator[None]:  # noqa: D102
        import cupy

        current = place("cuda").stream(self.device)
        with cupy.cuda.Device(self.device), cupy.cuda.Stream.from_external(_Handle(current)):
            yield


class CupyArrays(Arrays):
    """Arrays of CuPy, on its own current stream."""

    def __init__(self, x: Any) -> None:
        import cupy

        self.cupy, self.device = cupy, int(x.device.id)

    def owns(self, x: Any) -> bool:  # noqa: D102
        return isinstance(x, self.cupy.ndarray) and x.device.id == self.device

    def dtype(self, x: Any) -> str:  # noqa: D102
        return str(x.dtype)

    def address(self, x: Any) -> int:  # noqa: D102
        return int(x.data.ptr)

    def item(self, x: Any) -> int:  # noqa: D102
        return int(x.itemsize)

    def strides(self, x: Any) -> tuple[int, ...]:  # noqa: D102
        return tuple(x.strides)

    def contiguous(self, x: Any) -> bool:  # noqa: D102
        return bool(x.flags.c_contiguous)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:  # noqa: D102
        with self.cupy.cuda.Device(self.device):
            return self.cupy.empty(shape, dtype)

    def zeros(self, words: int) -> Any:  # noqa: D102
        with self.cupy.cuda.Device(self.device):
            return self.cupy.zeros(words, "int32")

    def upload(self, values: Any, dtype: str) -> Any:  # noqa: D102
        with self.cupy.cuda.Device(self.device):
            return self.cupy.ascontiguousarray(self.cupy.asarray(values), dtype=dtype)

    def capturing(self) -> bool:  # noqa: D102
        with self.cupy.cuda.Device(self.device):
            return bool(self.cupy.cuda.get_current_stream().is_capturing())

    @contextmanager
    def stream(self) -> Iterator[None]:  # noqa: D102
        with self.cupy.cuda.Device(self.device):
            yield


def arrays_of(x: Any) -> Arrays:
    """The face for an input; InputError for what is no array on a GPU."""
    module = type(x).__module__.partition(".")[0]
    if hasattr(x, "data_ptr") and hasattr(x, "is_cuda"):
        return TorchArrays(x)
    if module == "cupy":
        return CupyArrays(x)
    raise InputError(
        f"x is a {type(x).__module__}.{type(x).__name__}", hint="a torch CUDA tensor or CuPy array"
    )
