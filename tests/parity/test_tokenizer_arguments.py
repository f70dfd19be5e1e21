"""Every argument of parti-pytorch's image tokenizer, its quantisers and `Parti` is honoured, or
refused by its name; see test_arguments.py.
"""

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.config import fields_of
from t2i_jax.convert import arguments
from t2i_jax.errors import UserError
from t2i_jax.models.vit_vqgan import VitVQGanVAE
from t2i_jax.systems.imported import TorchFile
from t2i_jax.systems.parti import weights as parti_weights
from t2i_jax.systems.tokenizer import weights as tokenizer_weights
from tests.parity.reference import load

parti_pytorch = load("parti_pytorch")
torch = pytest.importorskip("torch")
quantizers = load("vector_quantize_pytorch")


VAE = dict(
    dim=16, image_size=16, layers=1, encdec_patch_size=4, encdec_heads=2, encdec_dim_head=8,
    codebook_size=16, use_vgg_and_gan=False,
)  # fmt: skip


def vae(**options):
    torch.manual_seed(0)
    return parti_pytorch.VitVQGanVAE(**{**VAE, **options})


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("discriminator", [False, True])
def test_channels_of_a_tokenizer(channels, discriminator):
    more = dict(use_vgg_and_gan=True, vgg=torch.nn.Identity(), discr_layers=1)
    theirs = vae(channels=channels, **(more if discriminator else {}))
    state = theirs.state_dict()
    sure = discriminator or channels in (2, 3)
    sources = {"live": (theirs, {}), "told": (state, dict(channels=channels))}
    sources |= {"by the patch": (state, dict(patch_size=4)), "alone": (state, {})}
    for of, (source, fields) in sources.items():
        if of == "alone" and not sure:
            with pytest.raises(UserError, match=r"are of channels=.* give channels"):
                convert.from_torch(source)
            continue
        model, weights = convert.from_torch(source, **fields)
        assert (model.channels, model.patch_size, model.image_size) == (channels, 4, 16)
        theirs.load_state_dict(convert.to_torch(model, weights), strict=True)
    with pytest.raises(UserError, match="channels=7 contradicts the weights"):
        convert.from_torch(state, channels=7)


# A value beside the default, and the field where it arrives; None for what is refused, "" for what
# has no effect.
OF_LFQ = {
    "entropy_loss_weight": (0.3, "entropy_loss_weight"),
    "commitment_loss_weight": (0.2, "commitment_weight"),
    "diversity_gamma": (1.5, "diversity_gamma"),
    "straight_through_activation": (torch.nn.Tanh(), None),
    "num_codebooks": (2, None),
    "keep_num_codebooks_dim": (True, None),
    "codebook_scale": (2.0, None),
    "frac_per_sample_entropy": (0.5, None),
    "has_projections": (False, None),
    "projection_has_bias": (False, None),
    "soft_clamp_input_value": (10.0, None),
    "cosine_sim_project_in": (True, None),
    "cosine_sim_project_in_scale": (3.0, ""),
    "channel_first": (False, None),
    "experimental_softplus_entropy_loss": (True, None),
    "entropy_loss_offset": (3.0, ""),
    "spherical": (True, None),
    "force_quantization_f32": (False, ""),
    "orthogonal_rotation": (True, None),
}
OF_VQ = {
    "codebook_dim": (8, "codebook_dim"),
    "decay": (0.7, "decay"),
    "kmeans_init": (True, ""),
    "commitment_weight": (0.5, "commitment_weight"),
    "rotation_trick": (False, "rotation_trick"),
    "heads": (2, None),
    "separate_codebook_per_head": (True, None),
    "eps": (1e-3, None),
    "freeze_codebook": (True, None),
    "kmeans_iters": (3, None),
    "sync_kmeans": (False, ""),
    "layernorm_after_project_in": (True, None),
    "threshold_ema_dead_code": (2, None),
    "channel_last": (False, ""),
    "accept_3d_fmap": (True, None),
    "commitment_use_cross_entropy_loss": (True, None),
    "orthogonal_reg_weight": (0.1, None),
    "orthogonal_reg_active_codes_only": (True, ""),
    "orthogonal_reg_max_codes": (4, ""),
    "codebook_diversity_loss_weight": (0.1, None),
    "codebook_diversity_temperature": (10.0, ""),
    "stochastic_sample_codes": (True, None),
    "sample_codebook_temp": (0.5, ""),
    "straight_through": (True, None),
    "directional_reparam": (True, None),
    "directional_reparam_variance": (1e-2, ""),
    "sync_codebook": (False, ""),
    "sync_affine_param": (True, ""),
    "ema_update": (False, None),
    "vq_bridge": (torch.nn.Identity(), None),
    "manual_ema_update": (True, None),
    "learnable_codebook": (True, None),
    "in_place_codebook_optimizer": (lambda p: torch.optim.SGD([torch.zeros(1)], lr=1.0), None),
    "manual_in_place_optimizer_update": (True, ""),
    "affine_param": (True, None),
    "affine_param_batch_decay": (0.5, ""),
    "affine_param_codebook_decay": (0.5, ""),
    "sync_update_v": (0.5, None),
    "return_zeros_for_masked_padding": (False, ""),
    "route_gradients_to_input": (False, None),
}
# Without others the library does not take them, or they mean nothing; where it fails all the same,
# the refusal is shown on the attribute.
WITH = {
    "kmeans_iters": dict(kmeans_init=True),
    "layernorm_after_project_in": dict(codebook_dim=8),
    "straight_through": dict(rotation_trick=False),
    "directional_reparam": dict(threshold_ema_dead_code=2),
    "separate_codebook_per_head": dict(heads=2),
    "cosine_sim_project_in_scale": dict(),
}
SAME_AS = {"directional_reparam": "threshold_ema_dead_code", "separate_codebook_per_head": "heads"}
FIXED = {  # by the tokenizer: that it sets them otherwise can only be made by hand
    "use_cosine_sim": False,
    "accept_image_fmap": False,
}
IMPOSSIBLE = {  # in a codebook on the sphere
    "orthogonal_reg_weight": ("orthogonal_reg_weight", 0.1),
    "learnable_codebook": ("_codebook.learnable_codebook", True),
    "vq_bridge": ("_codebook.vq_bridge", torch.nn.Identity()),
    "affine_param": ("_codebook.affine_param", True),
    "sync_update_v": ("sync_update_v", 0.5),
    "directional_reparam": ("directional_reparam", True),
    "accept_3d_fmap": ("accept_3d_fmap", True),
    **{name: (name, value) for name, value in FIXED.items()},
}


def test_every_argument_of_lfq():
    assert OF_LFQ.keys() | {"dim", "codebook_size"} == arguments.LFQ.keys()
    for argument, (value, field) in OF_LFQ.items():
        theirs = (
            vae(
                lfq_kwargs={"keep_num_codebooks_dim": True, argument: value}
                if argument == "num_codebooks"
                else {argument: value},
                dim=4 * 4 if argument != "has_projections" else 4,
            )
            if argument != "has_projections"
            else _with_projections()
        )
        _shows(argument, value, field, theirs, "LFQ")
        if field == "":
            _has_no_effect(quantizers.LFQ, {argument: value}, dim=16, codebook_size=16)


def _with_projections():
    """Linear maps between equal widths."""
    theirs = vae()
    theirs.quantizer = quantizers.LFQ(dim=4, codebook_size=16, has_projections=True)
    return theirs


def test_every_argument_of_the_codebook():
    rows = arguments.VECTOR_QUANTIZE.keys()
    assert OF_VQ.keys() | FIXED.keys() | {"dim", "codebook_size"} == rows
    common = dict(dim=16, codebook_size=16, accept_image_fmap=True, use_cosine_sim=True)
    for argument in rows - {"dim", "codebook_size"}:
        value, field = OF_VQ.get(argument, (FIXED.get(argument), None))
        theirs = vae(lookup_free_quantization=False)
        if argument in IMPOSSIBLE:
            place, value = IMPOSSIBLE[argument]
            *inside, name = place.split(".")
            setattr(
                getattr(theirs.quantizer, inside[0]) if inside else theirs.quantizer, name, value
            )
        else:
            options = {**common, **WITH.get(argument, {}), argument: value}
            theirs.quantizer = quantizers.VectorQuantize(**options)
        _shows(argument, value, field, theirs, "VectorQuantize")
        if field == "" and argument != "kmeans_init":
            _has_no_effect(quantizers.VectorQuantize, {argument: value}, **common)


def _shows(argument, value, field, theirs, kind):
    if field is None:
        with pytest.raises(UserError, match=f"{kind} has .*{argument}="):
            convert.from_torch(theirs)
    else:
        model, _ = convert.from_torch(theirs)
        assert not field or getattr(model, field) == value, argument
    if argument not in fields_of(VitVQGanVAE):
        with pytest.raises(UserError, match=f"no field '{argument}'"):
            convert.from_torch(vae().state_dict(), **{argument: value})


def _has_no_effect(kind, option, **common):
    x = torch.randn(2, 16, 4, 4)
    results = []
    for more in ({}, option):
        torch.manual_seed(0)
        quantiser = kind(**common, **more).train()
        results.append(quantiser(x)[:3])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other), option


def test_what_a_state_dict_does_not_tell_of_a_codebook_can_be_given():
    theirs = vae(lookup_free_quantization=False)
    live, _ = convert.from_torch(theirs)
    assert (live.decay, live.rotation_trick, live.codebook_dim) == (0.8, True, VAE["dim"])
    rest = dict(decay=0.8, rotation_trick=True, commitment_weight=1.0)
    assert convert.from_torch(theirs.state_dict(), **rest)[0] == live


def test_the_rotation_trick():
    assert convert.from_torch(vae(lookup_free_quantization=False))[0].rotation_trick
    from t2i_jax.nn import quantize

    library = load("vector_quantize_pytorch.vector_quantize_pytorch")
    rng = np.random.default_rng(0)
    x, code, slope = (rng.normal(size=(5, 8)).astype(np.float32) for _ in range(3))
    theirs = torch.tensor(x, requires_grad=True)
    value = library.rotate_to(theirs, torch.tensor(code))
    value.backward(torch.tensor(slope))
    import jax

    ours, pull_back = jax.vjp(lambda x: quantize.rotated(x, code), x)
    np.testing.assert_allclose(ours, value.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours, code, atol=1e-5)
    np.testing.assert_allclose(pull_back(slope)[0], theirs.grad.numpy(), atol=1e-5)


OF_VAE = {
    "dim": (24, "dim", 24),
    "image_size": (32, "image_size", 32),
    "channels": (1, "channels", 1),
    "layers": (2, "layers", 2),
    "lookup_free_quantization": (False, "lookup_free_quantization", False),
    "codebook_size": (64, "codebook_size", 64),
    "vq_kwargs": ({}, "codebook_size", 16),
    "lfq_kwargs": (dict(diversity_gamma=3.0), "diversity_gamma", 3.0),
    "discr_layers": (2, "discr_layers", 2),
    "vgg": (torch.nn.Identity(), "dim", 16),
    "encdec_patch_size": (2, "patch_size", 2),
    "encdec_dim_head": (4, "dim_head", 4),
    "encdec_heads": (4, "heads", 4),
    "encdec_ff_mult": (2, "ff_mult", 2),
}
OF_ITS_TASK = {
    "l2_recon_loss": (True, lambda task: (task.l1_weight, task.l2_weight), (0.0, 1.0)),
    "use_hinge_loss": (False, lambda task: task.gan_loss, "bce"),
    "use_vgg_and_gan": (True, lambda task: task.model.discr_layers, 1),
}


def test_every_argument_of_the_tokenizer(tmp_path):
    within = {f"encdec_{name}" for name in arguments.VIT_ENC_DEC} & OF_VAE.keys()
    assert (OF_VAE.keys() - within) | OF_ITS_TASK.keys() | {"kwargs"} == (
        arguments.VIT_VQGAN_VAE.keys()
    )
    own = {"dim", "image_size", "channels", "layers"}  # of the whole tokenizer
    assert own | {name.removeprefix("encdec_") for name in within} == arguments.VIT_ENC_DEC.keys()
    judged = dict(use_vgg_and_gan=True, vgg=torch.nn.Identity(), discr_layers=1)
    for argument, (value, field, wanted) in OF_VAE.items():
        more = judged if argument in ("discr_layers", "vgg") else {}
        model, weights = convert.from_torch(theirs := vae(**{**more, argument: value}))
        assert getattr(model, field) == wanted
        theirs.load_state_dict(convert.to_torch(model, weights), strict=True)
        if argument not in arguments.VIT_VQGAN_VAE or argument in (
            "vq_kwargs",
            "lfq_kwargs",
            "vgg",
        ):
            with pytest.raises(UserError, match=argument):
                convert.from_torch(theirs.state_dict(), **{argument: value})
    torch.save(vae(**judged).state_dict(), path := tmp_path / "vae.pt")
    for argument, (value, arrives, wanted) in OF_ITS_TASK.items():
        options = {"tokenizer": {argument: value}}
        for file in (
            TorchFile(vae(**{**judged, argument: value}), None, {}, {}),
            TorchFile(path, None, {}, options),
        ):
            assert arrives(tokenizer_weights.from_torch(file).task) == wanted
    with pytest.raises(UserError, match="tokenizer has nonsense=1"):
        tokenizer_weights.from_torch(TorchFile(path, None, {}, {"tokenizer": {"nonsense": 1}}))


OF_PARTI = {
    "dim": (24, lambda task: task.model.dim, 24),
    "depth": (2, lambda task: task.model.depth, 2),
    "dim_head": (4, lambda task: task.model.dim_head, 4),
    "heads": (3, lambda task: task.model.heads, 3),
    "dropout": (0.2, lambda task: task.model.dropout, 0.2),
    "ff_mult": (8 / 3, lambda task: int(task.model.ff_mult * 16), int(16 * 8 / 3)),
    "t5_name": ("t5-small", lambda task: task.text.dim, 6),
    "text_embed_dim": (7, lambda task: task.text.dim, 7),
    "cond_drop_prob": (0.4, lambda task: task.cond_drop_prob, 0.4),
    "max_text_len": (5, lambda task: task.model.max_text_len, 5),
    "vae_image_size": (32, None, None),
    "ignore_index": (0, None, None),
}


def test_every_argument_of_parti(tmp_path):
    assert OF_PARTI.keys() | {"vae", "vae_codebook_size"} == arguments.PARTI.keys()
    small = dict(dim=16, depth=1, dim_head=8, heads=2, text_embed_dim=6)
    with pytest.raises((AttributeError, AssertionError)):  # the package itself fails
        parti_pytorch.Parti(vae_codebook_size=16, **small)
    torch.save(parti_pytorch.Parti(vae=vae(), **small).state_dict(), path := tmp_path / "parti.pt")
    for argument, (value, arrives, wanted) in OF_PARTI.items():
        theirs = parti_pytorch.Parti(vae=vae(), **{**small, argument: value})
        if arrives is None:
            with pytest.raises(UserError, match=f"{argument}="):
                convert.from_torch(theirs)
        else:
            assert arrives(parti_weights.from_torch(TorchFile(theirs, None, {}, {})).task) == wanted
        fields, options = {argument: value}, {}
        if argument in ("cond_drop_prob", "t5_name", "ignore_index"):
            fields, options = options, {"parti": fields}
        given = TorchFile(path, None, fields, options)
        if argument in ("dropout", "max_text_len", "cond_drop_prob"):
            assert arrives(parti_weights.from_torch(given).task) == wanted
        else:  # the weights say otherwise, nothing there is called so, or --t5 says it
            with pytest.raises(UserError, match=argument):
                parti_weights.from_torch(given)
    assert parti_weights.from_torch(TorchFile(path, None, {}, {})).task.cond_drop_prob == 0.25
    harmless = parti_pytorch.Parti(vae=vae(), **small, ignore_index=-100)
    convert.from_torch(harmless)
    with pytest.raises(UserError, match="t5='t5-large' is not 't5-small'"):
        named = parti_pytorch.Parti(vae=vae(), **small, t5_name="t5-small")
        parti_weights.from_torch(TorchFile(named, "t5-large", {}, {}))
