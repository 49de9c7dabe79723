"""Small random transformers of the library ``transformers``, each with one training call."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as T

from tests.hosts.hosts import Given

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
_CLASSES = torch.tensor([0, 1])


def _ids() -> torch.Tensor:
    return torch.randint(3, 64, (2, 7))


def _language(model: torch.nn.Module) -> Given:
    ids = _ids()
    return Given(model, (), {"input_ids": ids, "labels": ids})


def gpt2() -> Given:
    return _language(
        T.GPT2LMHeadModel(
            T.GPT2Config(
                vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
            )
        )
    )


def llama() -> Given:
    return _language(T.LlamaForCausalLM(T.LlamaConfig(num_key_value_heads=1, **TEXT)))


def qwen2() -> Given:
    return _language(T.Qwen2ForCausalLM(T.Qwen2Config(num_key_value_heads=1, **TEXT)))


def bert() -> Given:
    ids = _ids()
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    model = T.BertForSequenceClassification(T.BertConfig(**TEXT))
    return Given(model, (), {"input_ids": ids, "attention_mask": mask, "labels": _CLASSES})


def roberta() -> Given:
    return _language(T.RobertaForMaskedLM(T.RobertaConfig(**TEXT)))


def distilbert() -> Given:
    config = T.DistilBertConfig(
        vocab_size=64, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32
    )
    model = T.DistilBertForSequenceClassification(config)
    return Given(model, (), {"input_ids": _ids(), "labels": _CLASSES})


def vit() -> Given:
    model = T.ViTForImageClassification(T.ViTConfig(**_IMAGE))
    return Given(model, (), {"pixel_values": torch.randn(2, 3, 16, 16), "labels": _CLASSES})


def t5() -> Given:
    config = T.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return _language(T.T5ForConditionalGeneration(config))


def mamba() -> Given:
    config = T.MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
    return _language(T.MambaForCausalLM(config))


def clip() -> Given:
    text, image = ({**config, "num_hidden_layers": 1} for config in (TEXT, _IMAGE))
    config = T.CLIPConfig(text_config=text, vision_config=image, projection_dim=16)
    pixels = torch.randn(2, 3, 16, 16)
    return Given(T.CLIPModel(config), (), {"input_ids": _ids(), "pixel_values": pixels, "return_loss": True})


MODELS: dict[str, Callable[[], Given]] = {
    made.__name__: made for made in (gpt2, llama, bert, vit, t5, mamba, qwen2, distilbert, roberta, clip)
}
