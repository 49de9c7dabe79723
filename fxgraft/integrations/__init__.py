"""Thin adapters to training frameworks. Each needs its framework, and nothing else does.

=====================  ================================================================
`_carrier`             what all callbacks do, under whatever names a framework calls it
`lightning`            Lightning
`_lightning_batches`   the batches that a Lightning callback measures on
`hugging_face`         the Trainer of transformers
`_hugging_face_calls`  in which form that Trainer calls a host
`_hugging_face_files`  what is in that Trainer's checkpoints
`_withheld_norm`       ``args.max_grad_norm`` while a callback clips in the place of its trainer
`accelerate`           Accelerate
`peft`                 LoRA of PEFT as seeds
=====================  ================================================================

Group: interface. May import: what they control.
"""

from typing import TYPE_CHECKING

from fxgraft.util.lazy_modules import lazy_modules

if TYPE_CHECKING:
    from fxgraft.integrations import accelerate, hugging_face, lightning, peft  # noqa: F401

__getattr__, __dir__ = lazy_modules(__name__, "accelerate", "hugging_face", "lightning", "peft")
