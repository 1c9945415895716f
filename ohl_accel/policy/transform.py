"""A policy as a torchvision transform: one line in your own pipeline.

Shapes: K operations, A elements of an operation, n samples of one call, B images of a batch, T frames of a clip,
C channels (1 grey, 3 RGB, 4 RGB and alpha), H rows, W columns.
"""

from bisect import bisect_right
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ohl_accel.operations import formats
from ohl_accel.operations.annotations import Motion, move_annotation
from ohl_accel.policy import Policy
from ohl_accel.policy.compiled import number_of, transform_tensor
from ohl_accel.policy.sample import read_call
from ohl_accel.rng import keyed_generator

_MAX_WORKERS = 4096
"""Maximum per data loader: more than a machine can run, and 32 KB of shared memory."""


class PolicyTransform(v2.Transform):
    """Applies to every sample a separate operation, drawn from a learned policy.

    Images are PIL images, `tv_tensors.Image`, `tv_tensors.Video`, plain tensors [C, H, W] or [B, C, H, W] on any
    device, and arrays [H, W], [H, W, C] or [B, H, W, C]: alone, or in nested lists, tuples and dicts with other
    values. Type, device and memory format are kept, and inputs are not changed. Levels are uint8, with 1 channel
    (grey), 3 (RGB) or 4 (RGB and alpha, which is moved but not toned); uint16 is scaled to uint8. PIL images of other
    modes become L or RGB, as in a search. As in all of `torchvision.transforms.v2`, only the first plain tensor is an
    image, and none beside an explicit image; arrays likewise.

    A call is one sample: all its images, and all frames of a clip, get the same operation. A list is a list of samples,
    also inside a dict (unless an image is in no list), and so is a batch [B, ...]. Geometric elements move
    `tv_tensors.Mask`, `BoundingBoxes` and `KeyPoints` with their image; tone elements leave them.

    Use it after flips and crops, before `ToTensor`, `ToDtype` and `Normalize`.

    Randomness: by default torch's global CPU generator, as in torchvision. With `seed` or `generator`, random
    numbers are keyed by the seed instead, in a data loader's worker also by the worker's id and by how often
    a worker with this id has been started, so that workers and epochs differ and two runs of a program agree.
    Use a different seed for each rank of a distributed training, and for each data loader.

    Args:
        policy: a `Policy`, which is copied, or an argument of `Policy.from_pretrained`: a run folder, a
            `policy.json`, a Hub id, or `zoo:NAME` for one that comes with the package.
        revision: branch, tag or commit on the Hub.
        offline: do not ask the Hub; only a policy that was downloaded before is found.
        seed: any integer.
        generator: a CPU generator; workers use only its initial seed.
        masks: which PIL images, arrays and plain tensors are masks: keys of dicts, and positions among the arguments
            of a call or in the outermost tuple. An empty list says that none is; None refuses a sample with two PIL
            images or arrays.
        mask_fill: the value of a mask where its image is filled with grey.

    Raises:
        ValueError: for a policy that is not available, for both seed and generator, and, when called, for
            anything that is not an image as above, or if it is not clear what belongs together.
    """

    def __init__(
        self,
        policy: Policy | str | PathLike[str],
        *,
        revision: str | None = None,
        offline: bool = False,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        masks: Sequence[str | int] | None = None,
        mask_fill: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(policy, Policy):
            policy = Policy.from_pretrained(policy, revision, offline=offline)
        elif revision is not None:
            raise ValueError(f"{revision=} belongs to a Hub id, but a Policy was given")
        if seed is not None and generator is not None:
            raise ValueError("give either seed or generator, not both")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"operations are sampled on the CPU: give a CPU generator, not {generator.device}"
            )
        if isinstance(masks, str | int):
            raise ValueError(f"masks must be a list of keys and positions: give masks=[{masks!r}]")
        self.policy = Policy(policy.theta, policy.provenance, space=policy.space)
        cumulative_K = self.policy.probabilities.cumsum(0)
        self._cumulative_K = cumulative_K / cumulative_K[-1]
        self._cumulative = self._cumulative_K.tolist()
        self.masks = None if masks is None else frozenset(masks)
        self.mask_fill = mask_fill
        self.seed = generator.initial_seed() if generator is not None else seed
        self._generator: torch.Generator | None = generator
        self._worker_generator: torch.Generator | None = None
        self._workers_begun: Tensor | None = None
        if self.seed is not None:
            self._generator = generator or keyed_generator(self.seed, "transform")
            self._workers_begun = torch.zeros(_MAX_WORKERS, dtype=torch.int64, device="cpu").share_memory_()
        self._number = number_of(self)

    def forward(self, *inputs: Any) -> Any:
        """Transform the samples of a call; torchvision's own `forward` does not know which values belong together."""
        if torch.compiler.is_compiling():
            if len(inputs) != 1 or type(inputs[0]) is not Tensor:
                raise ValueError("torch.compile: give the policy one plain uint8 tensor, [B, C, H, W]")
            return transform_tensor(inputs[0], self._number)
        plain = len(inputs) == 1 and self.masks is None and isinstance(inputs[0], Image.Image | np.ndarray)
        if plain and formats.number_of_images(inputs[0]) is None:  # what data loaders give, and quickly done
            return self._single(inputs[0], *self._draw_one())
        call = read_call(inputs, self.masks)
        operation_n, negative_nA = self.draw(sum(sample.draws for sample in call.samples))
        results, begin = {}, 0
        for sample in call.samples:
            chosen = slice(begin, begin + sample.draws)
            begin += sample.draws
            params = {"operations": operation_n[chosen], "negative": negative_nA[chosen]}
            for part in sample.parts:
                if part.kind == "image":
                    results[part.index] = self.transform(part.value, params)
                else:
                    motions = self._motions(params)
                    results[part.index] = move_annotation(part.value, motions, sample.batch, self.mask_fill)
        return call.rebuilt(results)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw for n samples: operations, int64 [n], and whether each element's sign is negative, bool [n, A]."""
        # one float64 for the operation, one for each sign
        generator = self._generator_here()
        per_sample = 1 + self.policy.space.arity
        draws_n = torch.rand(n, per_sample, dtype=torch.float64, device="cpu", generator=generator)
        operation_n = torch.searchsorted(self._cumulative_K, draws_n[:, 0].contiguous(), right=True)
        return operation_n, draws_n[:, 1:] < 0.5

    def _draw_one(self) -> tuple[int, list[bool]]:
        """What `draw(1)` gives, as plain numbers and in a tenth of the time."""
        draws = torch.rand(
            1 + self.policy.space.arity, dtype=torch.float64, device="cpu", generator=self._generator_here()
        )
        first, *others = draws.tolist()
        return bisect_right(self._cumulative, first), [other < 0.5 for other in others]

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the drawn operations of a sample to one of its inputs, a batch of images or a single one."""
        operation_B, negative_BA = params["operations"], params["negative"]
        space = self.policy.space
        if isinstance(inpt, np.ndarray) and inpt.ndim == 4:
            return formats.as_array(self.transform(formats.as_tensor(inpt), params))
        if isinstance(inpt, Image.Image | np.ndarray):
            return self._single(inpt, int(operation_B), negative_BA[0].tolist())
        if isinstance(inpt, tv_tensors.Video):
            repeated = {name: drawn.repeat_interleave(inpt.shape[-4], 0) for name, drawn in params.items()}
            frames = inpt.as_subclass(Tensor).flatten(0, -4)
            return tv_tensors.wrap(self.transform(frames, repeated).view(inpt.shape), like=inpt)
        images, alpha = formats.split_tensor(inpt.as_subclass(Tensor))
        if images.ndim == 4:
            result = space.apply(images, operation_B, negative_BA)
        elif images.device.type != "cpu":
            result = space.apply(images[None], operation_B, negative_BA)[0]
        else:
            chosen = int(operation_B), negative_BA[0].tolist()
            levels = space.apply_to_array(images.numpy(), *chosen, channels_first=True)
            if levels is not None:
                result = torch.from_numpy(levels)
            else:  # the torch code is made for batches: Pillow gives the same result in a third of the time
                result = pil_to_tensor(space.apply_to_pil(to_pil_image(images), *chosen))
        if alpha is not None:
            batch = None if alpha.ndim == 3 else len(alpha)
            result = torch.cat([result, move_annotation(alpha, self._motions(params), batch, 255)], -3)
        result = formats.in_format_of(inpt, result)
        return tv_tensors.wrap(result, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else result

    def _single(self, image: Image.Image | np.ndarray[Any, Any], operation: int, negative: list[bool]) -> Any:
        """Apply an operation to a PIL image, or an array [H, W] or [H, W, C]."""
        space = self.policy.space
        if isinstance(image, np.ndarray):
            if image.dtype == np.uint8 and image.shape[2:] != (4,):
                result = space.apply_to_array(image, operation, negative)
                if result is not None:
                    return result
            return np.array(self._single(formats.as_pil(image), operation, negative)).reshape(image.shape)
        levels, alpha_levels = formats.split_pil(image)
        picture = space.apply_to_image(levels, operation, negative)
        if alpha_levels is None:
            return picture
        return formats.join_pil(picture, Motion(space, operation, negative).pil_mask(alpha_levels, 255))

    def _motions(self, params: dict[str, Any]) -> list[Motion]:
        """How each of the drawn operations moves pixels."""
        pairs = zip(params["operations"].tolist(), params["negative"].tolist(), strict=True)
        return [Motion(self.policy.space, operation, negative) for operation, negative in pairs]

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
        super().__setstate__({**state, "_number": number_of(self)})  # type: ignore[no-untyped-call]  # torch's own
        if self._workers_begun is not None:
            self._workers_begun.share_memory_()  # a pickled copy no longer shares it
