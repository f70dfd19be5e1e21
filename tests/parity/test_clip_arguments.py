"""Options of OpenCLIP, of transformers' CLIP and of DINOv2 are honoured, or refused by their names:
from a live module, and from the configuration beside a file.
"""

import dataclasses
import json

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import arguments, torch_io
from t2i_jax.convert.arguments import NO_EFFECT, READ, Only
from t2i_jax.errors import UserError
from tests.parity import reference
from tests.parity.test_arguments import parameters

open_clip = reference.load("open_clip")
transformers = reference.load("transformers")

VISION = dict(layers=1, width=64, head_width=16, patch_size=8, image_size=16, mlp_ratio=2.0)
TEXT = dict(context_length=7, vocab_size=50, width=32, heads=2, layers=1)
DINO = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28)


def _own(config):
    """The fields that a configuration of transformers has of its own."""
    return [name for name in config.__annotations__ if name not in _OF_ALL]


_OF_ALL = ("model_type", "base_config_key", "sub_configs", "sub_configs_defaults")
ROWS = {
    "CLIPVisionCfg": (arguments.CLIP_VISION_CFG, dataclasses.fields(open_clip.CLIPVisionCfg)),
    "CLIPTextCfg": (arguments.CLIP_TEXT_CFG, dataclasses.fields(open_clip.CLIPTextCfg)),
    "CLIP": (arguments.OPEN_CLIP, parameters(open_clip.CLIP)),
    "CLIPVisionConfig": (arguments.CLIP_VISION_CONFIG, _own(transformers.CLIPVisionConfig)),
    "CLIPTextConfig": (arguments.CLIP_TEXT_CONFIG, _own(transformers.CLIPTextConfig)),
    "CLIPConfig": (arguments.CLIP_CONFIG, _own(transformers.CLIPConfig)),
    "Dinov2Config": (arguments.DINOV2_CONFIG, _own(transformers.Dinov2Config)),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_argument_of_the_installed_package_is_decided(name):
    rows, fields = ROWS[name]
    named = {getattr(field, "name", field) for field in fields}
    assert named == set(rows), "decide what becomes of it"
    assert all(row in (READ, NO_EFFECT) or isinstance(row, Only) for row in rows.values())


REFUSED = [
    ({"image_size": (8, 32)}, {}, r"image_size=.8, 32. and patch_size=.*squares of whole"),
    ({"image_size": 17, "patch_size": 5}, {}, "squares of whole patches"),
    ({"pool_type": "avg"}, {}, "pool_type='avg'"),
    ({"pool_type": "none"}, {}, "pool_type='none'"),
    ({"pool_type": "avg", "final_ln_after_pool": True}, {}, "pool_type='avg'"),
    ({"norm_kwargs": {"eps": 1e-2}}, {}, r"norm_kwargs.eps is 1e-05 for text and 0.01 for images"),
    ({}, {"norm_kwargs": {"eps": 1e-2}}, r"norm_kwargs.eps is 0.01 for text"),
    ({"act_kwargs": {"approximate": "tanh"}}, {}, "act_kwargs=.*tanh"),
    ({}, {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs=.*tanh"),
    ({}, {"no_causal_mask": True}, "no_causal_mask=True"),
    ({}, {"pool_type": "first"}, "pool_type='first'"),
    ({}, {"pool_type": "last"}, "pool_type='last'"),
    ({}, {"embed_cls": True}, "embed_cls=True"),
]


@pytest.mark.parametrize(("vision", "text", "match"), REFUSED)
def test_options_of_open_clip_without_a_form_are_refused(vision, text, match, tmp_path):
    theirs = open_clip.CLIP(24, VISION | vision, TEXT | text)
    with pytest.raises(UserError, match=match):
        convert.from_torch(theirs)
    config = {"model_cfg": {"vision_cfg": VISION | vision, "text_cfg": TEXT | text}}
    with pytest.raises(UserError, match=match):
        convert.from_torch(_written(tmp_path, theirs, config))


def test_options_of_open_clip_are_read_alike_from_a_module_and_a_file(tmp_path):
    eps = {"norm_kwargs": {"eps": 1e-3}}
    theirs = open_clip.CLIP(24, VISION | eps, TEXT | eps, quick_gelu=True)
    live, _ = convert.from_torch(theirs)
    sides = {"vision_cfg": VISION | eps, "text_cfg": TEXT | eps}
    config = {"model_cfg": {**sides, "quick_gelu": True, "embed_dim": 24}}
    assert live == convert.from_torch(_written(tmp_path, theirs, config))[0]
    assert (live.activation, live.epsilon) == ("quick_gelu", 1e-3)
    assert (live.vision_heads, live.transformer_heads) == (4, 2)
    config["model_cfg"]["custom_text"] = True
    with pytest.raises(UserError, match="model_cfg has custom_text=True"):
        convert.from_torch(_written(tmp_path, theirs, config))


def test_images_that_a_publisher_prepares_otherwise_are_told(tmp_path, capfd):
    theirs = open_clip.CLIP(24, VISION, TEXT)
    config = {"model_cfg": {"vision_cfg": VISION, "text_cfg": TEXT, "embed_dim": 24}}
    config["preprocess_cfg"] = {"interpolation": "bicubic", "resize_mode": "shortest"}
    convert.from_torch(_written(tmp_path, theirs, config))
    assert "prepares images" not in capfd.readouterr().err
    config["preprocess_cfg"]["resize_mode"] = "squash"
    convert.from_torch(_written(tmp_path, theirs, config))
    assert "prepares images with resize_mode='squash'; here" in capfd.readouterr().err


def _written(folder, theirs, config):
    path = folder / "open_clip_model.safetensors"
    torch_io.write(path, torch_io.arrays(theirs.state_dict()))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("text", "vision", "match"),
    [
        ({"hidden_act": "gelu"}, {}, "hidden_act is 'gelu' for text and 'quick_gelu' for images"),
        ({}, {"layer_norm_eps": 1e-2}, "layer_norm_eps is 1e-05 for text and 0.01 for images"),
        ({}, {"num_channels": 1}, "vision_config has num_channels=1"),
    ],
)
def test_a_clip_of_transformers_has_one_activation_and_epsilon(text, vision, match, tmp_path):
    shared = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.CLIPConfig(
        text_config={**shared, "vocab_size": 50, "max_position_embeddings": 7, **text},
        vision_config={**shared, "image_size": 16, "patch_size": 8, **vision}, projection_dim=16,
    )  # fmt: skip
    theirs = transformers.CLIPModel(config)
    with pytest.raises(UserError, match=match):
        convert.from_torch(theirs)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=match):
        convert.from_torch(tmp_path / "model.safetensors")


def test_a_processor_of_transformers_that_prepares_images_otherwise_is_told(tmp_path, capfd):
    shared = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**shared, "vocab_size": 50, "max_position_embeddings": 7},
            vision_config={**shared, "image_size": 16, "patch_size": 8}, projection_dim=16,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    convert.from_torch(tmp_path / "model.safetensors")
    assert "prepares images" not in capfd.readouterr().err
    transformers.CLIPImageProcessor(do_center_crop=False, resample=2).save_pretrained(tmp_path)
    convert.from_torch(tmp_path / "model.safetensors")
    assert "with do_center_crop=False, resample=2; here" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"image_size": (14, 56)}, "squares of whole patches"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"qkv_bias": False}, "qkv_bias=False"),
        ({"num_attention_heads": 4, "layer_norm_eps": 1e-2}, None),
        ({"use_swiglu_ffn": True}, None),
    ],
)
def test_options_of_dinov2(given, match, tmp_path):
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**DINO | given))
    theirs.save_pretrained(tmp_path)
    sources = theirs, tmp_path / "model.safetensors"
    if match is not None:
        for source in sources:
            with pytest.raises(UserError, match=match):
                convert.from_torch(source)
        return
    (live, params), (read, others) = map(convert.from_torch, sources)
    assert live == read
    assert live.heads == given.get("num_attention_heads", 2)
    assert live.epsilon == given.get("layer_norm_eps", 1e-6)
    for name in ("wide", "narrow"):
        kernels = (found["layers"][name]["kernel"] for found in (params, others))
        np.testing.assert_array_equal(*kernels)
