"""Low-rank changes of the layers of a model's image side (LoRA), by peft."""

from peft import LoraConfig
from peft.tuners.lora import Conv2d, Conv3d, LoraModel
from torch import nn

from radfm.modeling_radfm import RadFMForDiagnosis

_IMAGE_SIDE = (
    *("radfm.slice_encoder.", "radfm.volume_encoder.", "radfm.scan_encoder.", "radfm.case_encoder."),
    "radfm.case_projection",
)
_ADAPTED = (nn.Linear, nn.Conv2d, nn.Conv3d)


def with_adapters(model: RadFMForDiagnosis, rank: int) -> LoraModel:
    """Adds low-rank changes to the layers of the image side, in place. They and the head are trained.

    References:
        Hu et al., LoRA, ICLR 2022, https://arxiv.org/abs/2106.09685; its alpha is twice the rank
    """
    layers = [name for name, layer in model.named_modules() if name.startswith(_IMAGE_SIDE) and _can_be_adapted(layer)]
    adapters = LoraModel(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers), "default")
    for layer in model.modules():
        if isinstance(layer, Conv2d | Conv3d):  # peft copies stride and padding, but not the dilation
            for down in layer.lora_A.values():
                down.dilation = layer.get_base_layer().dilation
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            parameter.requires_grad_(True)
    return adapters


def _can_be_adapted(layer: nn.Module) -> bool:
    """Whether peft can add a change to a layer, and merge it: it cannot for 3D convolutions of a single voxel."""
    single_voxel = isinstance(layer, nn.Conv3d) and layer.kernel_size == (1, 1, 1)
    return type(layer) in _ADAPTED and getattr(layer, "groups", 1) == 1 and not single_voxel
