"""The models of the zoo: names by family, and how to make one with an example call."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Sample:
    """A model with one call of it."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Models of one library."""

    names: Callable[[], list[str]]
    make: Callable[[str], Sample]


def _images(size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


# torchvision: one or two of each architecture, the smaller ones

_TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 96,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 224,
    "wide_resnet50_2": 64,
}


def _torchvision() -> Any:
    """The package, also where its C++ operators are of another build of torch: these models call none."""
    while True:
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(missing[1], "(Tensor input) -> Tensor")


def _torchvision_names() -> list[str]:
    there = set(_torchvision().list_models())
    return [name for name in _TORCHVISION if name in there]


def _make_torchvision(name: str) -> Sample:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return Sample(_torchvision().get_model(name, weights=None, **options), (_images(_TORCHVISION[name]),))


# timm

_TIMM = {
    "bat_resnext26ts": 256,
    "beit_base_patch16_224": 224,
    "cait_xxs24_224": 224,
    "coat_lite_tiny": 224,
    "convmixer_768_32": 64,
    "convnextv2_atto": 64,
    "cspresnet50": 64,
    "deit_tiny_patch16_224": 224,
    "dla34": 64,
    "eca_resnet33ts": 64,
    "edgenext_xx_small": 64,
    "efficientvit_b0": 64,
    "fastvit_t8": 64,
    "ghostnet_100": 64,
    "hardcorenas_a": 64,
    "levit_128s": 224,
    "mixer_s32_224": 224,
    "mobilevit_xxs": 64,
    "nfnet_l0": 64,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "repvgg_a0": 64,
    "resmlp_12_224": 224,
    "res2net50_26w_4s": 64,
    "seresnet18": 64,
    "swin_tiny_patch4_window7_224": 224,
    "tf_efficientnet_lite0": 64,
    "vit_tiny_patch16_224": 224,
    "xcit_nano_12_p16_224": 224,
}


def _timm_names() -> list[str]:
    _torchvision()
    import timm

    there = set(timm.list_models())
    return [name for name in _TIMM if name in there]


def _make_timm(name: str) -> Sample:
    import timm

    return Sample(timm.create_model(name, pretrained=False), (_images(_TIMM[name]),))


# transformers: small random configurations

_TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PIXELS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
_GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
_SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
}
_T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
_GROUPED = {**_TEXT, "num_key_value_heads": 1}

# Model class -> configuration class, its settings, and what the model is given.
_TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "AlbertForMaskedLM": ("AlbertConfig", {**_TEXT, "embedding_size": 8}, "text"),
    "BartForConditionalGeneration": ("BartConfig", _SEQ2SEQ, "text"),
    "BertForMaskedLM": ("BertConfig", _TEXT, "text"),
    "BloomForCausalLM": (
        "BloomConfig",
        {"vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        "text",
    ),
    "CLIPVisionModel": ("CLIPVisionConfig", _PIXELS, "image"),
    "CohereForCausalLM": ("CohereConfig", _GROUPED, "text"),
    "ConvNextModel": ("ConvNextConfig", {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, "image"),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", _TEXT, "text"),
    "DeiTModel": ("DeiTConfig", _PIXELS, "image"),
    "Dinov2Model": ("Dinov2Config", _PIXELS, "image"),
    "DistilBertForMaskedLM": (
        "DistilBertConfig",
        {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        "text",
    ),
    "ElectraForMaskedLM": ("ElectraConfig", {**_TEXT, "embedding_size": 8}, "text"),
    "FalconForCausalLM": ("FalconConfig", _TEXT, "text"),
    "GemmaForCausalLM": ("GemmaConfig", {**_GROUPED, "head_dim": 8}, "text"),
    "Gemma2ForCausalLM": ("Gemma2Config", {**_GROUPED, "head_dim": 8}, "text"),
    "GPT2LMHeadModel": ("GPT2Config", _GPT, "text"),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _TEXT, "text"),
    "LlamaForCausalLM": ("LlamaConfig", _GROUPED, "text"),
    "MambaForCausalLM": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
        "text",
    ),
    "MistralForCausalLM": ("MistralConfig", _GROUPED, "text"),
    "MixtralForCausalLM": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}, "text"),
    "MPNetForMaskedLM": ("MPNetConfig", _TEXT, "text"),
    "OlmoForCausalLM": ("OlmoConfig", _GROUPED, "text"),
    "OPTForCausalLM": ("OPTConfig", {**_TEXT, "ffn_dim": 32, "word_embed_proj_dim": 16}, "text"),
    "PhiForCausalLM": ("PhiConfig", _GROUPED, "text"),
    "Qwen2ForCausalLM": ("Qwen2Config", _GROUPED, "text"),
    "Qwen3ForCausalLM": ("Qwen3Config", {**_GROUPED, "head_dim": 8}, "text"),
    "ResNetModel": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "image",
    ),
    "RobertaForMaskedLM": ("RobertaConfig", _TEXT, "text"),
    "StableLmForCausalLM": ("StableLmConfig", _GROUPED, "text"),
    "T5ForConditionalGeneration": ("T5Config", {**_T5, "decoder_start_token_id": 0}, "text"),
    "ViTForImageClassification": ("ViTConfig", _PIXELS, "image"),
    "ViTMAEModel": ("ViTMAEConfig", _PIXELS, "image"),
    "XLMRobertaForMaskedLM": ("XLMRobertaConfig", _TEXT, "text"),
}


def _transformers_names() -> list[str]:
    with suppress(ImportError):  # else transformers stumbles over one that is there and of another build
        _torchvision()
    import transformers

    transformers.logging.set_verbosity_error()
    return [name for name in _TRANSFORMERS if hasattr(transformers, name)]


def _make_transformers(name: str) -> Sample:
    import transformers

    configuration, settings, kind = _TRANSFORMERS[name]
    model = getattr(transformers, name)(getattr(transformers, configuration)(**settings))
    if kind == "image":
        return Sample(model, (), {"pixel_values": _images(32 if "image_size" not in settings else 16)})
    ids = torch.randint(3, 64, (2, 7))
    return Sample(model, (), {"input_ids": ids, "labels": ids})


FAMILIES = {
    "transformers": Family(_transformers_names, _make_transformers),
    "torchvision": Family(_torchvision_names, _make_torchvision),
    "timm": Family(_timm_names, _make_timm),
}
