"""Every argument of muse-maskgit-pytorch's constructors is honoured, or refused by its name: from a
live module, from a file, and as a field on the command line; as tests/parity/test_arguments.py has
it for the other packages, those of the quantisers among them.
"""

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.config import fields_of
from t2i_jax.convert import arguments
from t2i_jax.convert import muse as tables
from t2i_jax.convert.arguments import NO_EFFECT, READ, Only
from t2i_jax.errors import UserError
from t2i_jax.models.maskgit import SelfCritic, TokenCritic
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.systems.imported import TorchFile
from t2i_jax.systems.maskgit import weights as maskgit_weights
from t2i_jax.systems.muse import weights as muse_weights
from t2i_jax.systems.tokenizer import weights as tokenizer_weights
from tests.parity import muse_models
from tests.parity.muse_models import Sizes, imported
from tests.parity.reference import load
from tests.parity.test_arguments import parameters

muse = load("muse_maskgit_pytorch")
torch = pytest.importorskip("torch")
package = load("muse_maskgit_pytorch.muse_maskgit_pytorch")

CONSTRUCTORS = {
    "VQGanVAE": (muse.VQGanVAE, arguments.VQGAN_VAE),
    "ResnetEncDec": (muse.vqgan_vae.ResnetEncDec, arguments.RESNET_ENC_DEC),
    "TransformerBlocks": (package.TransformerBlocks, arguments.MUSE_BLOCKS),
    "MaskGitTransformer": (muse.Transformer, arguments.MASKGIT_TRANSFORMER),
    "TokenCritic": (muse.Transformer, arguments.TOKEN_CRITIC),
    "MaskGit": (muse.MaskGit, arguments.MASKGIT),
    "Muse": (muse.Muse, arguments.MUSE),
}


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_argument_of_the_installed_package_is_decided(name):
    constructor, rows = CONSTRUCTORS[name]
    assert set(parameters(constructor)) == set(rows), "decide what becomes of it"
    assert all(row in (READ, NO_EFFECT) or isinstance(row, Only) for row in rows.values())


def test_the_two_transformers_hand_all_arguments_on():
    for kind in (muse.MaskGitTransformer, muse.TokenCritic):
        assert set(parameters(kind)) == {"args", "kwargs"}


# Image tokenizers --------------------------------------------------------------------------------

# A value beside the default, the field where it arrives, and what stands there.
OF_VAE = {
    "dim": (32, "dim", 32),
    "channels": (1, "channels", 1),
    "layers": (2, "layers", 2),
    "codebook_size": (64, "codebook_size", 64),
    "vq_kwargs": ({}, "codebook_size", 64),
    "lfq_kwargs": (dict(diversity_gamma=3.0), "diversity_gamma", 3.0),
    "discr_layers": (2, "discr_layers", 2),
    "vgg": (torch.nn.Identity(), "dim", 32),
    "encdec_layer_mults": ((3, 1), "layer_mults", (3, 1)),
    "encdec_num_resnet_blocks": ((1, 0), "num_resnet_blocks", (1, 0)),
    "encdec_resnet_groups": (8, "resnet_groups", 8),
    "encdec_first_conv_kernel_size": (3, "first_conv_kernel_size", 3),
}
OF_ITS_TASK = {
    "l2_recon_loss": (True, lambda task: (task.l1_weight, task.l2_weight), (0.0, 1.0)),
    "use_hinge_loss": (False, lambda task: task.gan_loss, "bce"),
    "use_vgg_and_gan": (True, lambda task: task.model.discr_layers, 1),
}
JUDGED = dict(use_vgg_and_gan=True, vgg=torch.nn.Identity(), discr_layers=1, dim=16)


def test_every_argument_of_the_tokenizer(tmp_path):
    within = {f"encdec_{name}" for name in arguments.RESNET_ENC_DEC} & OF_VAE.keys()
    known = (OF_VAE.keys() - within) | OF_ITS_TASK.keys()
    assert known | {"kwargs", "lookup_free_quantization"} == arguments.VQGAN_VAE.keys()
    own = {"dim", "channels", "layers"}  # of the whole tokenizer
    assert own | {name.removeprefix("encdec_") for name in within} == (
        arguments.RESNET_ENC_DEC.keys()
    )
    theirs = muse_models.vae(**JUDGED | {name: value for name, (value, _, _) in OF_VAE.items()})
    model, weights = convert.from_torch(theirs)
    theirs.load_state_dict(convert.to_torch(model, weights), strict=True)
    told = {"resnet_groups": 8, "diversity_gamma": 3.0}  # what no array tells
    for found in (model, convert.from_torch(theirs.state_dict(), **told)[0]):
        assert {field: getattr(found, field) for _, field, _ in OF_VAE.values()} == {
            field: wanted for _, field, wanted in OF_VAE.values()
        }
    for argument in OF_VAE:
        known = argument in fields_of(VQGanVAE)
        said = f"{argument}=96 contradicts the weights" if known else f"no field '{argument}'"
        with pytest.raises(UserError, match=said):
            convert.from_torch(theirs.state_dict(), **told, **{argument: 96})
    with pytest.raises(TypeError):  # the package itself fails
        muse_models.vae(lookup_free_quantization=False)
    torch.save(muse_models.vae(**JUDGED).state_dict(), path := tmp_path / "vae.pt")
    for argument, (value, arrives, wanted) in OF_ITS_TASK.items():
        live = muse_models.vae(**{**JUDGED, argument: value})
        for file in (
            TorchFile(live, None, {}, {}),
            TorchFile(path, None, {"resnet_groups": 4}, {"tokenizer": {argument: value}}),
        ):
            assert arrives(tokenizer_weights.from_torch(file).task) == wanted


# Transformers ------------------------------------------------------------------------------------

SMALL = dict(num_tokens=16, dim=16, seq_len=4, depth=1, dim_head=8, heads=2, t5_name="t5-small")
OF_TRANSFORMER = {
    "num_tokens": (8, "codebook_size", 8),
    "dim": (24, "dim", 24),
    "seq_len": (9, "fmap_size", 3),
    "t5_name": ("t5-base", "text_embed_dim", 768),
    "self_cond": (True, "self_cond", True),
    "depth": (2, "depth", 2),
    "dim_head": (4, "dim_head", 4),
    "heads": (3, "heads", 3),
    "ff_mult": (2.5, "ff_mult", 2.5),
    "dim_out": (5, None, None),
    "add_mask_id": (True, None, None),
    "flash": (True, "", None),
}
_TOLD = {"self_cond"}  # by a live module, and by no array


@pytest.mark.parametrize("kind", [muse.MaskGitTransformer, muse.TokenCritic])
def test_every_argument_of_the_transformers(kind):
    rows = arguments.MASKGIT_TRANSFORMER | arguments.MUSE_BLOCKS
    assert OF_TRANSFORMER.keys() | {"kwargs"} == rows.keys()
    read = {name: trial for name, trial in OF_TRANSFORMER.items() if trial[1]}
    theirs = kind(**{name: value for name, (value, _, _) in read.items()})
    for source, told in ((theirs, {}), (theirs.state_dict(), {"self_cond": True})):
        found, _ = convert.from_torch(source, **told)
        for field, wanted in (trial[1:] for trial in read.values()):
            assert abs(getattr(found, field) - wanted) < 0.1, field
    state = kind(**SMALL).state_dict()
    for argument, (value, _, _) in OF_TRANSFORMER.items():
        known = argument in fields_of(TokenCritic)
        said = "contradicts the weights" if known else f"no field '{argument}'"
        if argument != "self_cond":
            with pytest.raises(UserError, match=said):
                convert.from_torch(state, **{argument: value})


def test_transformers_of_neither_kind():
    for made, said in (
        (muse.MaskGitTransformer(**SMALL, dim_out=5), "MaskGitTransformer has dim_out=5, which"),
        (muse.MaskGitTransformer(**SMALL, dim_out=1), "TokenCritic has add_mask_id=True, which"),
        (muse.TokenCritic(**SMALL, add_mask_id=True), "TokenCritic has add_mask_id=True, which"),
        (muse.Transformer(**SMALL), "MaskGitTransformer has add_mask_id=False, which"),
    ):
        with pytest.raises(UserError, match=said):
            convert.from_torch(made)
    for kind, option in ((muse.MaskGitTransformer, "add_mask_id"), (muse.TokenCritic, "dim_out")):
        with pytest.raises((AssertionError, TypeError)):  # the package itself fails
            kind(**SMALL, **{option: True})


def test_tiles_compute_the_same_attention():
    found = []
    for flash in (False, True):
        torch.manual_seed(0)
        theirs = muse.MaskGitTransformer(**SMALL, flash=flash)
        with torch.no_grad():
            found.append(
                theirs(torch.arange(4)[None], text_embeds=torch.tensor(muse_models.texts(1)))
            )
    np.testing.assert_allclose(*found, atol=2e-6)


# MaskGit -----------------------------------------------------------------------------------------


def linear(t):
    """Another schedule than the package's."""
    return 1 - t


OF_MASKGIT = {
    "image_size": (16, None, None),
    "noise_schedule": (linear, None, None),
    "cond_image_size": (4, lambda task: task.cond_image_size, 4),
    "cond_drop_prob": (0.2, lambda task: task.cond_drop_prob, 0.2),
    "self_cond_prob": (0.3, lambda task: task.self_cond_prob, 0.3),
    "no_mask_token_prob": (0.4, lambda task: task.no_mask_token_prob, 0.4),
    "critic_loss_weight": (0.5, lambda task: task.critic_loss_weight, 0.5),
}
# Networks: of no value that a command could name.
NETWORKS = {"transformer", "token_critic", "self_token_critic", "vae", "cond_vae"}


def with_options(file, system, options):
    """The same file, with other arguments of the package's class; it is converted once."""
    again = TorchFile(file.source, None, {}, {system: options} if options else {})
    again._converted = file._converted
    return again


def test_every_argument_of_maskgit(tmp_path):
    assert OF_MASKGIT.keys() | NETWORKS == arguments.MASKGIT.keys()
    muse_models.maskgit(Sizes()).save(path := tmp_path / "maskgit.pt")
    file = TorchFile(path, None, {"resnet_groups": 4}, {})

    def task_of(**options):
        return maskgit_weights.from_torch(with_options(file, "maskgit", options)).task

    read = {name: value for name, (value, arrives, _) in OF_MASKGIT.items() if arrives}
    for task in (imported(muse_models.maskgit(Sizes(), **read)).task, task_of(**read)):
        for argument in read:
            _, arrives, wanted = OF_MASKGIT[argument]
            assert arrives(task) == wanted, argument
    for argument, told in (("image_size", 16), ("noise_schedule", "linear")):
        live = muse_models.maskgit(Sizes(), **{argument: OF_MASKGIT[argument][0]})
        with pytest.raises(UserError, match=f"{argument}="):
            imported(live)
        with pytest.raises(UserError, match=f"{argument}="):
            task_of(**{argument: told})
    for argument, (value, _, _) in OF_MASKGIT.items():
        said = "contradicts the" if argument == "image_size" else f"no field '{argument}'"
        with pytest.raises(UserError, match=said):
            convert.from_torch(path, **{"resnet_groups": 4, argument: value})
    for argument in NETWORKS:
        with pytest.raises(UserError, match=f"maskgit has {argument}=1"):
            task_of(**{argument: 1})
    task = task_of(image_size=8, noise_schedule="cosine_schedule")
    as_there = {name: parameters(muse.MaskGit)[name].default for name in list(OF_MASKGIT)[3:]}
    assert {name: getattr(task, name) for name in as_there} == as_there
    assert task == task_of() and task.critic is None and task.tokenizers[1] is None


def test_a_schedule_is_known_by_its_values():
    """Of a live module; one that fails is named too."""
    for schedule, name in (
        (lambda t: torch.sin((1 - t) * np.pi / 2), "cosine_schedule"),
        (linear, "linear"),
        (lambda t: t.nothing, "<lambda>"),
    ):
        theirs = muse_models.maskgit(Sizes(), noise_schedule=schedule)
        assert tables._schedule(theirs) == name


def test_networks_of_maskgit(tmp_path):
    theirs = muse_models.maskgit(Sizes(critic="token", small=4, two_tokenizers=True))
    found = imported(theirs)
    assert isinstance(found.task.critic, TokenCritic) and found.task.own_tokenizer != "tokenizer"
    assert [part.task.model.image_size for part in found.parts.values()] == [4, 8]
    torch.save(theirs.state_dict(), path := tmp_path / "two.pt")
    with pytest.raises(UserError, match="cond_tokenizer: dim=8 .* no multiple of resnet_groups=16"):
        imported(path, resnet_groups=4)
    with pytest.raises(UserError, match="do not tell cond_image_size; give"):
        imported(path, resnet_groups=4, cond_tokenizer={"resnet_groups": 4})
    found = imported(muse_models.maskgit(Sizes(critic="self")))
    assert isinstance(found.task.critic, SelfCritic)
    named = muse_models.maskgit(Sizes())
    with pytest.raises(UserError, match="t5='t5-large' is not 't5-small'"):
        maskgit_weights.from_torch(TorchFile(named, "t5-large", {}, {}))
    names = ("t5-small", "google-t5/t5-small")  # of the same weights
    for given, told in (names, names[::-1]):
        assert TorchFile(named, given, {}, {}).text(512, name=told).source == given
    named.vae = muse_models.vae(codebook_size=32)
    with pytest.raises(UserError, match="num_tokens=16, and its tokenizer codebook_size=32"):
        imported(named)
    theirs.cond_vae = muse_models.vae(codebook_size=32)
    with pytest.raises(UserError, match="codebook_size=16 is not that of tokenizer, 32"):
        imported(theirs)
    for alone in (theirs.transformer, theirs.token_critic):
        with pytest.raises(UserError, match="without an image tokenizer.*save the whole MaskGit"):
            imported(alone)


def test_every_argument_of_muse(tmp_path):
    assert set(arguments.MUSE) == {"base", "superres"}
    base = muse_models.maskgit(Sizes())
    theirs = muse.Muse(base, muse_models.maskgit(Sizes(image_size=16, small=8)))
    torch.save(theirs.state_dict(), path := tmp_path / "muse.pt")

    def found(file, **options):
        return muse_weights.from_torch(with_options(file, "muse", options))

    live, file = TorchFile(theirs, None, {}, {}), TorchFile(path, None, {"resnet_groups": 4}, {})
    for made in (found(live), found(file)):
        assert [part.image_size for part in made.parts.values()] == [8, 16]
        assert made.parts["superres"].task.cond_image_size == 8 and made.image_size == 16
    made = found(file, base={"cond_drop_prob": 0.1}, superres={"cond_drop_prob": 0.2})
    assert [part.task.cond_drop_prob for part in made.parts.values()] == [0.1, 0.2]
    model, _ = convert.from_torch(path, resnet_groups=4, superres={"self_cond": True})
    assert [part.transformer.self_cond for part in (model.base, model.superres)] == [False, True]
    for options, said in (
        (dict(base=3), "muse.base=3 are no arguments of a MaskGit"),
        (dict(base={"cond_drop": 3}), "cond_drop=3, an argument of no release"),
        (dict(third={}), "muse has third="),
        (dict(superres={"cond_image_size": 4}), "is given the base's images of 8 pixels"),
    ):
        with pytest.raises(UserError, match=said):
            found(file, **options)
    with pytest.raises(UserError, match="no field 'dimm'; did you mean 'dim'"):
        convert.from_torch(path, resnet_groups=4, dimm=3)


# Files -------------------------------------------------------------------------------------------


def test_what_is_saved_twice_may_be_saved_once():
    """safetensors keeps one name of each array."""
    theirs = muse_models.maskgit(Sizes(critic="self"))
    state = theirs.state_dict()
    model, params = convert.from_torch(theirs)
    for dropped in (("vae.", "transformer."), ("cond_vae.", "token_critic.net.")):
        once = {k: v for k, v in state.items() if not k.startswith(dropped)}
        found, again = convert.from_torch(once, resnet_groups=4)
        assert (found.transformer, found.critic) == (model.transformer, model.critic)
        ours, theirs = (convert.engine.flatten(tree) for tree in (again, params))
        assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)
    other = {**state, "cond_vae.enc_dec.encoders.0.bias": torch.ones(8)}
    found, _ = convert.from_torch(other, resnet_groups=4, cond_tokenizer={"resnet_groups": 4})
    assert found.cond_tokenizer is not None and model.cond_tokenizer is None


def test_a_tokenizer_of_the_first_releases_and_a_discriminator_that_was_kept():
    theirs = muse_models.maskgit(Sizes(small=4), cond_vae=muse_models.vae(**JUDGED))
    theirs.vae.quantizer = _sphere()
    state = theirs.state_dict()
    model, params = convert.from_torch(state, resnet_groups=4, cond_tokenizer={"resnet_groups": 4})
    assert not model.tokenizer.lookup_free_quantization and model.cond_tokenizer.discr_layers == 1
    assert convert.to_torch(model, params).keys() == state.keys()
    old = {k.replace("vae.quantizer._codebook", "vae.vq._codebook"): v for k, v in state.items()}
    old = {k.replace("vae.quantizer.project", "vae.vq.project"): v for k, v in old.items()}
    again, _ = convert.from_torch(old, resnet_groups=4, cond_tokenizer={"resnet_groups": 4})
    assert again == model


def _sphere():
    library = load("vector_quantize_pytorch")
    return library.VectorQuantize(
        dim=8, codebook_size=16, codebook_dim=4, use_cosine_sim=True, accept_image_fmap=True
    )
