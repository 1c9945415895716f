"""The values of `augment.policy`: no policy, the paper's baselines, torchvision's policies, and learned ones.

| name | what is applied after the basic transforms |
|---|---|
| none | nothing |
| cutout | Cutout (DeVries & Taylor, 2017): `augment.cutout`, or half the shorter side if that is 0 |
| mixup | torchvision's MixUp (Zhang et al., 2018) |
| uniform | an operation sampled uniformly from `augment.space`, then Cutout if the recipe has it |
| autoaugment | torchvision's AutoAugment: CIFAR-10's policy up to 64 pixels, ImageNet's above; then Cutout |
| randaugment | torchvision's RandAugment, then Cutout |
| trivialaugment | torchvision's TrivialAugmentWide, then Cutout |
| a policy.json, a run folder, a Hub id or zoo:NAME | an operation sampled from a learned policy, then Cutout |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ohl_accel.errors import UserError, did_you_mean
from ohl_accel.extensions import why_refused
from ohl_accel.operations.space import PAPER
from ohl_accel.operations.space_file import open_space, read_space_file
from ohl_accel.policy import Policy, zoo
from ohl_accel.policy.protocol import AugmentationPolicy, BatchDraw, NoPolicy
from ohl_accel.recipe import AugmentSection
from ohl_accel.rng import keyed_generator, keyed_seed

_SMALL_SIDE = 64
_TORCHVISION = {
    "autoaugment": v2.AutoAugment,
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}
FIXED_POLICIES = ("none", "cutout", "mixup", "uniform", *_TORCHVISION)
"""Names of fixed policies; everything else is a learned policy."""


class TorchvisionPolicy:
    """One of torchvision's policies, applied image by image to PIL images (its reference semantics).

    Args:
        name: autoaugment, randaugment or trivialaugment.
        args: of its constructor.
        side: the shorter side of the images, in pixels.

    Raises:
        UserError: for invalid arguments.
    """

    def __init__(self, name: str, args: Mapping[str, Any], side: int) -> None:
        args = dict(args)
        if name == "autoaugment":
            default = "cifar10" if side <= _SMALL_SIDE else "imagenet"
            args["policy"] = _member(v2.AutoAugmentPolicy, args.get("policy", default))
        self._transform = _construct(name, _TORCHVISION[name], args)
        try:
            self.apply(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), BatchDraw(0, 0, 0, 1, slice(0, 1)))
        except Exception as error:
            raise UserError(f"augment.policy_args={args}: not valid for {name}: {error}") from error

    def apply(self, images_bCHW: Tensor, draw: BatchDraw) -> tuple[Tensor, Tensor | None]:
        """Apply the policy: uint8 [b, C, H, W] to the same, on the same device; and no operations.

        torchvision uses torch's global generator, which is seeded for each image by its index in
        the group's batch, the same for all trajectories.

        Args:
            images_bCHW: this process's part of the batch.
            draw: keys the random numbers.
        """
        generator = draw.shared_generator("torchvision")
        seeds = torch.randint(2**62, (draw.batch_size,), generator=generator)[draw.own].tolist()
        result = torch.empty_like(images_bCHW, device="cpu")
        for index, (image, image_seed) in enumerate(zip(images_bCHW.cpu(), seeds, strict=True)):
            torch.default_generator.manual_seed(image_seed)
            result[index] = F.pil_to_tensor(self._transform(F.to_pil_image(image)))
        return result.to(images_bCHW.device, non_blocking=True), None


class Mixing:
    """torchvision's MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019), in one ratio for the whole batch.

    They mix each image and its label with the one before it. Of several, each batch gets one, all as likely.

    Args:
        section: the recipe's augment section.
        num_classes: of the data.

    Raises:
        UserError: for invalid arguments.
    """

    def __init__(self, section: AugmentSection, num_classes: int) -> None:
        self._transforms: list[v2.Transform] = []
        if section.policy == "mixup":
            args = {"num_classes": num_classes, **section.policy_args}
            self._transforms.append(_construct("mixup", v2.MixUp, args))
        for kind, alpha in ((v2.MixUp, section.mixup), (v2.CutMix, section.cutmix)):
            if alpha:
                self._transforms.append(kind(num_classes=num_classes, alpha=alpha))

    def __call__(self, inputs_bCHW: Tensor, labels_b: Tensor, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix normalized images, float [b, C, H, W]; labels become float [b, classes]. Nothing, if there is no mixing.

        The ratio is that of the inner step: the same for all trajectories and processes.
        """
        if not self._transforms:
            return inputs_bCHW, labels_b
        torch.default_generator.manual_seed(keyed_seed(seed, "mixup", step))
        chosen = 0
        if len(self._transforms) > 1:
            generator = keyed_generator(seed, "mixup or cutmix", step)
            chosen = int(torch.randint(len(self._transforms), (), generator=generator))
        mixed: tuple[Tensor, Tensor] = self._transforms[chosen](inputs_bCHW, labels_b)
        return mixed


def mixes(section: AugmentSection) -> bool:
    """Whether labels are mixed, which needs exactly one per image."""
    return section.policy == "mixup" or bool(section.mixup or section.cutmix)


def resolve_augment(section: AugmentSection, side: int) -> AugmentSection:
    """The section as used by the run: with the Cutout of its policy, and the contents of the space's file.

    Cutout is off, the recipe's, or half the shorter side. The space is kept only if the policy uses one.
    """
    if isinstance(section.space, str) and section.space.endswith((".yaml", ".yml")):
        section = section.model_copy(update={"space": read_space_file(section.space)})
    if section.policy in FIXED_POLICIES and section.policy != "uniform":
        section = section.model_copy(update={"space": None})
    if section.policy in ("none", "mixup"):
        return section.model_copy(update={"cutout": 0})
    if section.policy == "cutout" and not section.cutout:
        return section.model_copy(update={"cutout": side // 2})
    return section


def open_policy(section: AugmentSection, side: int) -> AugmentationPolicy:
    """The policy that transforms each image after the basic transforms.

    Args:
        section: the recipe's augment section; no policy means the uniform one.
        side: the shorter side of the images, in pixels.

    Raises:
        UserError: for an unknown name, for a policy or a space that cannot be read, for a learned policy whose space
            is not the recipe's, and for invalid arguments of the policy.
    """
    name, args = section.policy or "uniform", section.policy_args
    if name in _TORCHVISION:
        return TorchvisionPolicy(name, args, side)
    if args and name != "mixup":
        raise UserError(f"augment.policy_args={args}: augment.policy={name} takes no arguments")
    if name in FIXED_POLICIES and name != "uniform":
        return NoPolicy()
    try:
        space = None if section.space is None else open_space(section.space)
    except UserError as error:
        raise UserError(f"augment.space: {error}") from error
    if name == "uniform":
        return Policy(space=space or PAPER)
    policy = open_learned_policy(name)
    if space is not None and space != policy.space:
        raise UserError(
            f"augment.space: {space!r} is not the space of augment.policy={name}, "
            f"{policy.space!r}; augment.space=null uses the policy's own"
        )
    return policy


def open_learned_policy(name: str) -> Policy:
    """The policy of a policy.json, a run folder, `zoo:NAME`, or a Hub id with or without `@revision`.

    Raises:
        UserError: if there is none; the message lists the known names.
    """
    in_zoo = name.startswith(zoo.PREFIX)
    if "/" not in name and not in_zoo and not Path(name).exists():
        hint = did_you_mean(name.lower(), FIXED_POLICIES, 1)
        raise UserError(
            f"augment.policy={name}: no such policy; {f'{hint} Known' if hint else 'known'}: "
            f"{', '.join(FIXED_POLICIES)}, or a policy.json, a run folder, a Hub id (user/name) or zoo:NAME"
        )
    source, revision = name, None
    if not in_zoo and not Path(name).exists():
        source, _, revision = name.partition("@")
    try:
        return Policy.from_pretrained(source, revision or None)
    except ValueError as error:
        raise UserError(f"augment.policy={name}: {error}") from None


def _construct(name: str, kind: type[v2.Transform], args: Mapping[str, Any]) -> v2.Transform:
    try:
        return kind(**args)
    except (TypeError, ValueError) as error:
        why = why_refused(kind, args, ("self",), error)
        raise UserError(f"augment.policy_args={dict(args)}: not valid for {name}: {why}") from error


def _member(policies: type[v2.AutoAugmentPolicy], value: str) -> v2.AutoAugmentPolicy:
    known = [policy.value for policy in policies]
    if value not in known:
        raise UserError(
            f"augment.policy_args: policy={value!r} is not one of autoaugment's: {', '.join(known)}"
        )
    return policies(value)
