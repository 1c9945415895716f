"""A policy as a torchvision transform: one line in your own pipeline.

Shapes: K operations, B images of one tensor, n images of one call, C channels, H rows, W columns.
"""

from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ohl_accel.policy import Policy
from ohl_accel.rng import keyed_generator

_MAX_WORKERS = 4096
"""Maximum per data loader: more than a machine can run, and 32 KB of shared memory."""


class PolicyTransform(v2.Transform):
    """Applies to every image a separate operation, sampled from a learned policy.

    Accepts PIL images (mode L or RGB), `tv_tensors.Image` and plain uint8 tensors [C, H, W] or [B, C, H, W]
    with C = 1 or 3, on any device, alone or in nested lists, tuples and dicts with other values. Each image
    of a batch and each image of a nested structure gets its own operation; type, mode and device are kept,
    and inputs are not changed. As in all of `torchvision.transforms.v2`, only the first plain tensor is
    treated as an image, and none if there is a PIL image or a `tv_tensors.Image`.

    Use it after flips and crops, before `ToTensor`, `ToDtype` and `Normalize`.

    Randomness: by default torch's global CPU generator, as in torchvision. With `seed` or `generator`, random
    numbers are keyed by the seed instead, in a data loader's worker also by the worker's id and by how often
    a worker with this id has been started, so that workers and epochs differ and two runs of a program agree.
    Use a different seed for each rank of a distributed training, and for each data loader.

    Args:
        policy: a `Policy`, which is copied, or an argument of `Policy.from_pretrained`: a run folder, a
            `policy.json`, a Hub id, or `zoo:NAME` for one that comes with the package.
        revision: branch, tag or commit on the Hub.
        seed: any integer.
        generator: a CPU generator; workers use only its initial seed.

    Raises:
        ValueError: for a policy that is not available, for both seed and generator, and, when called, for
            anything that is not an image as above.
    """

    def __init__(
        self,
        policy: Policy | str | PathLike[str],
        *,
        revision: str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(policy, Policy):
            policy = Policy.from_pretrained(policy, revision)
        elif revision is not None:
            raise ValueError(f"{revision=} belongs to a Hub id, but a Policy was given")
        if seed is not None and generator is not None:
            raise ValueError("give either seed or generator, not both")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"operations are sampled on the CPU: give a CPU generator, not {generator.device}"
            )
        self.policy = Policy(policy.theta, policy.provenance, space=policy.space)
        cumulative_K = self.policy.probabilities.cumsum(0)
        self._cumulative_K = cumulative_K / cumulative_K[-1]
        self.seed = generator.initial_seed() if generator is not None else seed
        self._generator: torch.Generator | None = generator
        self._worker_generator: torch.Generator | None = None
        self._workers_begun: Tensor | None = None
        if self.seed is not None:
            self._generator = generator or keyed_generator(self.seed, "transform")
            self._workers_begun = torch.zeros(_MAX_WORKERS, dtype=torch.int64, device="cpu").share_memory_()

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Sample for all images of a call: the parameters of `transform`, in the order of the inputs."""
        if not flat_inputs:
            raise ValueError("no image found: give a PIL image, a uint8 tensor or a tv_tensors.Image")
        counts = [_number_of_images(inpt) for inpt in flat_inputs]
        # one float64 for the operation, one for each sign
        generator = self._generator_here()
        per_image = 1 + self.policy.space.arity
        draws_n = torch.rand(sum(counts), per_image, dtype=torch.float64, device="cpu", generator=generator)
        operation_n = torch.searchsorted(self._cumulative_K, draws_n[:, 0].contiguous(), right=True)
        negative_nA = draws_n[:, 1:] < 0.5
        return {"draws": zip(operation_n.split(counts), negative_nA.split(counts), strict=True)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the next sampled operations to one input, a batch of images or a single one."""
        operation_B, negative_BA = next(params["draws"])
        space = self.policy.space
        if isinstance(inpt, Image.Image):
            return space.apply_to_pil(inpt, int(operation_B), negative_BA[0].tolist())
        images = inpt.as_subclass(Tensor)
        if images.ndim == 4:
            result = space.apply(images, operation_B, negative_BA)
        elif images.device.type != "cpu":
            result = space.apply(images[None], operation_B, negative_BA)[0]
        else:  # the kernels are made for batches: Pillow gives the same result in a third of the time
            image = space.apply_to_pil(to_pil_image(images), int(operation_B), negative_BA[0].tolist())
            result = pil_to_tensor(image).contiguous()
        return tv_tensors.wrap(result, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else result

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Reject several plain tensors that look like images, since v2 would only transform the first."""
        plain = [inpt for inpt in flat_inputs if type(inpt) is Tensor and _looks_like_images(inpt)]
        if len(plain) > 1 and not _holds_explicit_images(flat_inputs):
            raise ValueError(
                f"{len(plain)} plain tensors look like images, and only the first would be transformed: "
                "stack them into one [B, C, H, W], or wrap each in torchvision.tv_tensors.Image"
            )

    def extra_repr(self) -> str:
        """Size and entropy (nats) of the policy, and the seed."""
        seed = "" if self.seed is None else f", seed={self.seed}"
        return f"operations={len(self._cumulative_K)}, entropy={self.policy.entropy:.2f}{seed}"

    def _generator_here(self) -> torch.Generator | None:
        """The generator of this process; None for torch's global one."""
        worker = get_worker_info()
        if worker is None or self._workers_begun is None or self.seed is None:
            return self._generator
        if self._worker_generator is None:
            begun = int(self._workers_begun[worker.id])
            self._workers_begun[worker.id] += 1
            self._worker_generator = keyed_generator(self.seed, "transform worker", worker.id, begun)
        return self._worker_generator

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._generator is not None:  # as bytes: torch's own pickle of it does not work with spawn
            state["_generator"] = self._generator.get_state().numpy().tobytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["_generator"] is not None:
            content = torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8)
            state = {**state, "_generator": torch.Generator().set_state(content)}
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's own
        if self._workers_begun is not None:
            self._workers_begun.share_memory_()  # a pickled copy no longer shares it


def _number_of_images(inpt: Any) -> int:
    """How many images an input contains.

    Raises:
        ValueError: if the kernels cannot process it; the message says what to do.
    """
    if isinstance(inpt, Image.Image):
        if inpt.mode not in ("L", "RGB"):
            raise ValueError(f"PIL images must have mode L or RGB, got {inpt.mode}: use image.convert('RGB')")
        height, width = inpt.height, inpt.width
    elif isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image):
        raise ValueError(
            f"got tv_tensors.{type(inpt).__name__}: operations move pixels but cannot transform it accordingly; "
            "a policy is for image classification"
        )
    elif inpt.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 in 0..255, got {inpt.dtype} of shape {list(inpt.shape)}: put the policy before "
            "ToTensor, ToDtype and Normalize; if this is not an image, wrap the images in torchvision.tv_tensors.Image"
        )
    elif not _looks_like_images(inpt):
        raise ValueError(f"images must be [C, H, W] or [B, C, H, W] with C = 1 or 3, got {list(inpt.shape)}")
    else:
        height, width = inpt.shape[-2:]
    if height == 0 or width == 0:
        raise ValueError(f"an image of {height} x {width} has no pixels")
    return len(inpt) if isinstance(inpt, Tensor) and inpt.ndim == 4 else 1


def _looks_like_images(tensor: Tensor) -> bool:
    return tensor.dtype == torch.uint8 and tensor.ndim in (3, 4) and tensor.shape[-3] in (1, 3)


def _holds_explicit_images(inputs: Iterable[Any]) -> bool:
    return any(isinstance(inpt, Image.Image | tv_tensors.Image | tv_tensors.Video) for inpt in inputs)
