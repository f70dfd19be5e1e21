"""Checkpoints of the packages become folders that the library and its commands read, and go back
bit for bit.
"""

import dataclasses
import re
import types

import jax
import numpy as np
import pytest
import torch

import t2i_jax as t2i
from t2i_jax import runs, sharding, systems
from t2i_jax.cli.convert import from_torch
from t2i_jax.convert import torch_io
from t2i_jax.errors import UserError
from t2i_jax.runs import export_torch, import_torch
from t2i_jax.runs import folder as folders
from t2i_jax.systems import imported
from tests.e2e import tiny_t5
from tests.e2e.command import inside, pictures, refused
from tests.parity import muse_models, reference
from tests.runs import untrained
from tests.systems import test_decoder, toy_cascade, toy_muse

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def package():
    return reference.load("parti_pytorch")


@pytest.fixture(scope="module")
def vae(package):
    torch.manual_seed(0)
    return package.VitVQGanVAE(
        dim=16,
        image_size=16,
        encdec_patch_size=4,
        layers=1,
        encdec_heads=2,
        encdec_dim_head=8,
        codebook_size=64,
        use_vgg_and_gan=False,
    ).eval()


@pytest.fixture(scope="module")
def parti(package, vae):
    return package.Parti(vae=vae, dim=16, depth=2, heads=2, dim_head=8, text_embed_dim=24).eval()


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value.numpy(), err_msg=name)


def test_a_tokenizer_goes_in_and_out(vae, tmp_path):
    torch.save({"model": vae.state_dict()}, tmp_path / "vae.pt")
    import_torch(tmp_path / "vae.pt", tmp_path / "ours")
    import_torch(vae, tmp_path / "live")
    same(torch_io.read(export_torch(tmp_path / "live", tmp_path / "l.pt")), vae.state_dict())
    system = t2i.load(tmp_path / "ours")
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert system.decode(system.encode(images)).shape == images.shape
    same(
        torch_io.read(export_torch(tmp_path / "ours", tmp_path / "BACK.SAFETENSORS")),
        vae.state_dict(),
    )
    for name, sentence in (
        ("a.xyz", r"out='.*/a\.xyz' does not end in \.safetensors, \.pt or \.msgpack"),
        ("a", "out='.*/a' does not end in"),
        ("a.msgpack", r"out has the ending '\.msgpack' of Flax, and no package keeps a"),
    ):
        with pytest.raises(UserError, match=sentence):
            export_torch(tmp_path / "ours", tmp_path / "new" / name)
        assert not (tmp_path / "new" / name).exists()


def _wholes():
    """Modules whose tokenizers have discriminators where the packages keep them; by what they are,
    with the fields that their files need.
    """
    parti, muse = (reference.load(f"{name}_pytorch") for name in ("parti", "muse_maskgit"))
    torch.manual_seed(0)
    gan = dict(use_vgg_and_gan=True, vgg=torch.nn.Identity(), discr_layers=1)
    vit = parti.VitVQGanVAE(
        dim=16, image_size=16, layers=1, encdec_patch_size=4, encdec_heads=2, encdec_dim_head=8,
        codebook_size=16, **gan,
    )  # fmt: skip
    vqgan = muse_models.vae(dim=16, encdec_resnet_groups=16, **gan)
    small, large = muse_models.Sizes(), muse_models.Sizes(image_size=16, layers=2, small=8)
    plain = muse_models.vae(dim=16, layers=2, encdec_resnet_groups=16)
    superres = muse_models.maskgit(large, vae=plain, cond_vae=vqgan)
    base = muse_models.maskgit(small, vae=vqgan)
    whole = parti.Parti(vae=vit, dim=16, depth=1, heads=2, dim_head=8, text_embed_dim=24)
    return {
        "VitVQGanVAE": (vit, {}),
        "VQGanVAE": (vqgan, {}),
        "Parti": (whole, {}),
        "MaskGit": (superres, {"maskgit": {"cond_image_size": 8}}),
        "Muse": (muse.Muse(base=base, superres=superres), {}),
    }


@pytest.mark.parametrize("kind", ["VitVQGanVAE", "VQGanVAE", "Parti", "MaskGit", "Muse"])
def test_discriminators_go_in_and_out(kind, tmp_path):
    theirs, fields = _wholes()[kind]
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    import_torch(theirs, tmp_path / "live")
    import_torch(tmp_path / "theirs.pt", tmp_path / "file", **fields)
    for name in ("live", "file"):
        t2i.load(tmp_path / name)
        back = torch.load(export_torch(tmp_path / name, tmp_path / f"{name}.pt"))
        theirs.load_state_dict(back, strict=True)
        saved = {n: value for n, value in theirs.state_dict().items() if "discr." in n}
        assert saved and all(torch.equal(back[n], value) for n, value in saved.items())


def test_a_discriminator_of_larger_images_is_left_out_and_that_is_said(package, tmp_path, capsys):
    theirs = package.VitVQGanVAE(
        dim=16, image_size=16, encdec_patch_size=4, layers=1, codebook_size=16,
        vgg=torch.nn.Identity(),
    )  # fmt: skip
    system = t2i.load(import_torch(theirs, tmp_path / "ours"))
    assert system.task.discriminator is None
    said = capsys.readouterr().err
    assert "discriminator is left out: images of 16 pixels" in said and "at least 64" in said


def _said_fields(capsys):
    """The fields that an export says to give where its file is read back."""
    return re.findall(r'"(\S+=.*?)"[. ]', capsys.readouterr().err)


_SIGNED = {"pixel_range": (-1.0, 1.0)}


@pytest.mark.parametrize("kind", ["VitVQGanVAE", "VQGanVAE", "Parti", "MaskGit", "Muse"])
def test_pixels_that_no_file_tells_are_said_and_come_back(kind, tmp_path, capsys):
    theirs, fields = _wholes()[kind]
    ours = {
        "MaskGit": {"cond_tokenizer": _SIGNED},
        "Muse": {"superres": {"cond_tokenizer": _SIGNED}},
    }
    import_torch(theirs, tmp_path / "usual")
    export_torch(tmp_path / "usual", tmp_path / "usual.pt")
    assert not capsys.readouterr().err
    import_torch(theirs, tmp_path / "signed", **_SIGNED, **ours.get(kind, {}))
    export_torch(tmp_path / "signed", tmp_path / "signed.pt")
    given = _said_fields(capsys)
    assert len(given) == {"MaskGit": 2, "Muse": 3}.get(kind, 1)
    asked = [f"{n}.{name}={value}" for n, of in fields.items() for name, value in of.items()]
    from_torch(tmp_path / "signed.pt", tmp_path / "again", (*given, *asked))
    assert (
        _ranges(tmp_path / "again") == _ranges(tmp_path / "signed") != _ranges(tmp_path / "usual")
    )


def _ranges(run):
    """By folder, the values of the images of all its networks."""
    text = {str(p.relative_to(run)): p.read_text() for p in run.rglob("system.json")}
    return {name: re.findall(r'"pixel_range": \[[^]]*\]', one) for name, one in text.items()}


def test_pixels_of_a_vqgan_are_said_where_its_public_weights_have_others(tmp_path, capsys):
    for pixels in ((-1.0, 1.0), (0.0, 1.0)):
        net = t2i.VQGAN(dim=32, dim_mults=(1, 1), encoder_blocks=1, decoder_blocks=2, attention=(),
                        codebook_size=8, codebook_dim=8, z_channels=8, image_size=16,
                        pixel_range=pixels)  # fmt: skip
        recipe = t2i.Recipe(
            t2i.TokenizerTask(net), t2i.DataConfig(image_size=16), t2i.TrainConfig(1, 1)
        )
        run, file = tmp_path / f"run{pixels[0]}", tmp_path / f"{pixels[0]}.pt"
        untrained.write(recipe, run)
        export_torch(run, file)
        given = _said_fields(capsys)
        assert bool(given) == (pixels == (0.0, 1.0))
        from_torch(file, tmp_path / f"again{pixels[0]}", tuple(given))
        assert runs.load_run_recipe(tmp_path / f"again{pixels[0]}").task.model.pixel_range == pixels


@pytest.mark.parametrize("compat", [(), ("unit_init",), ("misaligned_bias",)])
def test_a_parti_without_the_packages_bias_is_said_and_comes_back(compat, vae, tmp_path, capsys):
    import_torch(vae, tmp_path / "vae")
    tokenizer = runs.load_run_recipe(tmp_path / "vae")
    task = t2i.PartiTask(
        model=t2i.Parti(dim=16, depth=1, heads=2, dim_head=8, compat=compat),
        text=t2i.StoredText(dim=24, max_length=4),
        tokenizer=tokenizer.task.model,
    )
    data, train = t2i.DataConfig(image_size=16), t2i.TrainConfig(steps=1, batch_size=1)
    recipe = t2i.Recipe(task, data, train, parts={"tokenizer": tokenizer})
    untrained.write(recipe, tmp_path / "run")
    export_torch(tmp_path / "run", tmp_path / "parti.pt")
    given = _said_fields(capsys)
    assert bool(given) == ("misaligned_bias" not in compat)
    from_torch(tmp_path / "parti.pt", tmp_path / "again", tuple(given))
    assert runs.load_run_recipe(tmp_path / "again").task.model.compat == compat
    with pytest.raises(UserError, match="compat=.*'output_norm'.* contradicts the weights"):
        from_torch(tmp_path / "parti.pt", tmp_path / "no", ("compat=('output_norm',)",))


@pytest.mark.parametrize("layers", [0, 1])
def test_a_discriminator_that_the_package_has_no_place_for_stays_behind(layers, tmp_path):
    net = t2i.VitVQGanVAE(
        dim=16,
        image_size=16,
        patch_size=4,
        layers=1,
        heads=2,
        dim_head=8,
        codebook_size=16,
        discr_layers=layers,
    )
    task = t2i.TokenizerTask(net, discriminator=net.discriminator())
    recipe = t2i.Recipe(task, t2i.DataConfig(image_size=16), t2i.TrainConfig(steps=1, batch_size=1))
    untrained.write(recipe, tmp_path / "run")
    names = torch_io.read(export_torch(tmp_path / "run", tmp_path / "out.safetensors"))
    assert any(name.startswith("discr.") for name in names) == bool(layers) and len(names) > 10


def test_a_tokenizer_too_narrow_for_the_discriminator_of_the_package_goes_out(tmp_path):
    net = t2i.VQGanVAE(
        dim=8, image_size=16, layers=2, layer_mults=(1, 1), resnet_groups=2,
        first_conv_kernel_size=3, codebook_size=16,
    )  # fmt: skip
    data = t2i.DataConfig(image_size=16)
    recipe = t2i.Recipe(t2i.TokenizerTask(net), data, t2i.TrainConfig(steps=1, batch_size=1))
    untrained.write(recipe, tmp_path / "run")
    export_torch(tmp_path / "run", tmp_path / "out.pt")
    theirs = reference.load("muse_maskgit_pytorch").VQGanVAE(
        dim=8, layers=2, encdec_layer_mults=(1, 1), use_vgg_and_gan=False, codebook_size=16,
        encdec_resnet_groups=2, encdec_first_conv_kernel_size=3, lookup_free_quantization=True,
    )  # fmt: skip
    theirs.load_state_dict(torch.load(tmp_path / "out.pt"), strict=True)
    again = import_torch(tmp_path / "out.pt", tmp_path / "again", resnet_groups=2)
    assert t2i.load(again).task.model.dim == 8


def test_a_parti_with_its_tokenizer_goes_in_and_out_through_the_command_line(parti, tmp_path):
    torch.save(parti.state_dict(), tmp_path / "parti.pt")
    assert (
        "written"
        in inside("convert", "from-torch", tmp_path / "parti.pt", tmp_path / "ours").stdout
    )
    inside("convert", "to-torch", tmp_path / "ours", tmp_path / "back.pt")
    parti.load_state_dict(torch.load(tmp_path / "back.pt"), strict=True)
    same(torch_io.read(tmp_path / "back.pt"), parti.state_dict())
    system = t2i.load(tmp_path / "ours")
    embeds = np.random.default_rng(0).normal(size=(1, 128, 24)).astype(np.float32)
    assert system.generate((embeds, np.ones((1, 128), bool)), seed=0).shape == (1, 16, 16, 3)
    sentence = refused("convert", "from-torch", tmp_path / "parti.pt", tmp_path / "ours")
    assert "exists and is not empty" in sentence


@pytest.mark.parametrize("longest", [3, 200])
def test_a_parti_is_given_texts_as_long_as_it_reads(longest, vae, tmp_path):
    """It cuts those that are longer itself."""
    package = reference.load("parti_pytorch")
    theirs = package.Parti(
        vae=vae, dim=8, depth=1, heads=2, dim_head=4, text_embed_dim=5, max_text_len=longest
    )
    system = t2i.load(import_torch(theirs, tmp_path / "parti"))
    length = max(longest, 100)
    given = np.ones((1, length, 5), np.float32), np.ones((1, length), bool)
    assert system.task.text.encode(None, given, "prompts")["text_mask"].sum() == length


def test_a_trainers_checkpoint_goes_in_and_out_through_the_command_line(tmp_path):
    imagen_pytorch = reference.load("imagen_pytorch")
    torch.manual_seed(0)
    sizes = dict(
        dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8, text_embed_dim=24, max_text_len=4
    )
    unets = [imagen_pytorch.Unet(**sizes), imagen_pytorch.Unet(**sizes)]
    imagen = imagen_pytorch.Imagen(unets, image_sizes=(8, 16), text_embed_dim=24, timesteps=4)
    trainer = imagen_pytorch.ImagenTrainer(imagen, use_ema=True, verbose=False)
    trainer.steps += torch.tensor([3, 5])
    trainer.save(tmp_path / "trainer.pt")
    with pytest.raises(UserError, match="live ImagenTrainer; give the file"):
        import_torch(trainer, tmp_path / "ours")
    options = "imagen.image_sizes=(8,16)", "attn_heads=2", "imagen.timesteps=4"
    assert (
        "written"
        in inside(
            "convert", "from-torch", tmp_path / "trainer.pt", tmp_path / "ours", *options
        ).stdout
    )
    system = t2i.load(tmp_path / "ours")
    assert (
        dict(system.updates) == {"stage_1": 3, "stage_2": 5}
        and system.task.stages[1].image_size == 16
    )
    inside("convert", "to-torch", tmp_path / "ours", tmp_path / "back.pt")
    wanted, back = (
        torch.load(tmp_path / name, weights_only=True) for name in ("trainer.pt", "back.pt")
    )
    same({name: value.numpy() for name, value in back["model"].items()}, wanted["model"])
    assert back["steps"].tolist() == [3, 5]
    for field, told in {
        "imagen.video=True": "Imagen has video=True, which has no form here",
        "imagen.channels=1": "imagen.channels=1 contradicts the weights (3)",
        "imagen.timestep=4": "did you mean 'timesteps'?",
        "imagen.dynamic_thresholding=no": "imagen.dynamic_thresholding='no' is not true or false",
        "imagen.timesteps=None": "imagen.timesteps=None is not a whole number",
        "imagen.elucidated=1": "imagen.elucidated=1 is not true or false",
        "imagen.imagen_type=both": "has imagen_type='both', which has no form here",
        "imagen.text_encoder_name=t5-small": "give t5='t5-small' (--t5 t5-small) instead",
        "timesteps=4": "imagen.timesteps=VALUE",
        "self_cond=True": "contradicts the weights",
        "dropout=0.5": "Unet has no field 'dropout'",
    }.items():
        wrong = inside(
            "convert", "from-torch", tmp_path / "trainer.pt", tmp_path / "new", *options[:2], field,
            status=2,
        )  # fmt: skip
        assert told in wrong.stderr and "Traceback" not in wrong.stderr
    sentence = inside(
        "convert", "from-torch", tmp_path / "trainer.pt", tmp_path / "new", status=2
    ).stderr
    assert (
        "image_sizes" in sentence
        and "Traceback" not in sentence
        and not (tmp_path / "new").exists()
    )


def test_what_does_not_fit_is_refused_and_nothing_is_left(vae, parti, tmp_path):
    torch.save(
        {k: v for k, v in parti.state_dict().items() if not k.startswith("vae.")},
        tmp_path / "half.pt",
    )
    with pytest.raises(UserError, match="without its image tokenizer"):
        import_torch(tmp_path / "half.pt", tmp_path / "ours")
    state = vae.state_dict()
    state.pop(next(name for name in state if name.startswith("enc_dec.decoder")))
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(UserError, match="is missing"):
        import_torch(tmp_path / "short.pt", tmp_path / "ours")
    with pytest.raises(UserError, match="is not a file"):
        import_torch(tmp_path / "no.pt", tmp_path / "ours")
    with pytest.raises(UserError, match="given for the weights of a VitVQGanVAE"):
        torch.save(vae.state_dict(), tmp_path / "vae.pt")
        import_torch(tmp_path / "vae.pt", tmp_path / "ours", t5="t5-small")
    with pytest.raises(UserError, match="is not a folder"):
        export_torch(tmp_path / "nowhere", tmp_path / "out.pt")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["t5=x"], "t5='x' is an option.*--t5 x"),
        (["path=x"], "VitVQGanVAE has no field 'path'"),
        (["out=x"], "VitVQGanVAE has no field 'out'"),
        (["pixel_range=5"], "pixel_range=5 is not several values"),
        (["pixel_range=(0,'x')"], "pixel_range=.* is not "),
        (["heads"], "has no '='"),
        (["=3"], "is no name"),
        (["imagen.=3"], "is no name"),
        ([".heads=3"], "is no name"),
        (["heads=3", "heads=2"], "'heads' is given twice"),
        (["tokenizer.heads=2"], "write heads=VALUE alone"),
        (["tokenizer.l2_recon_loss=no"], "l2_recon_loss='no', which has no form"),
        (["heads=3", "heads.x=4"], "is given beside 'heads'"),
        (["heads=[[[["], r"heads='\[\[\[\[' is not a whole number"),
        (["dtype=fp16"], "dtype='fp16' is not known"),
        (["imagen=3"], "no field 'imagen'"),
        (["imagen.image_sizes=3"], "given for the weights of a VitVQGanVAE"),
    ],
)
def test_options_of_the_command_are_one_sentence_each(vae, tmp_path, given, said):
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    with pytest.raises(UserError, match=said):
        from_torch(tmp_path / "vae.pt", tmp_path / "ours", tuple(given))
    assert not (tmp_path / "ours").exists()


def test_a_maskgit_goes_in_and_out_through_the_command_line_and_samples(tmp_path):
    theirs = muse_models.save(tmp_path / "maskgit.pt")
    (tmp_path / "t5").mkdir()
    tiny_t5.save(tmp_path / "t5", ["a red circle above a blue square", "green triangles"] * 20)
    inside(
        "convert", "from-torch", tmp_path / "maskgit.pt", tmp_path / "ours", "--t5",
        tmp_path / "t5", "maskgit.cond_drop_prob=0.25",
    )  # fmt: skip
    inside("convert", "to-torch", tmp_path / "ours", tmp_path / "back.pt")
    back, state = torch_io.read(tmp_path / "back.pt"), theirs.state_dict()
    unused = ("transformer.norm.", "transformer.self_cond_to_init_embed.")
    same(
        {name: value for name, value in back.items() if not name.startswith(unused)},
        {name: value for name, value in state.items() if not name.startswith(unused)},
    )
    theirs.load_state_dict(torch.load(tmp_path / "back.pt"), strict=True)
    system = t2i.load(tmp_path / "ours")
    assert system.task.cond_drop_prob == 0.25 and system.task.image_size is None
    words = ("a red circle", "--count", 2, "--steps", 3, "--out", tmp_path / "out")
    inside("sample", tmp_path / "ours", *words)
    made = pictures(tmp_path / "out")
    assert len(made) == 2 and all(image.shape == (8, 8, 3) for image in made.values())
    wrong = inside(
        "convert", "from-torch", tmp_path / "maskgit.pt", tmp_path / "new",
        "maskgit.noise_schedule=linear", "maskgit.cond_drop=1", status=2,
    )  # fmt: skip
    assert "noise_schedule='linear', which has no form here" in wrong.stderr
    assert "did you mean 'cond_drop_prob'" in wrong.stderr and not (tmp_path / "new").exists()


def _of_zeros(task, folder, parts=None):
    """The contents of a run that was not trained."""
    shapes = sharding.unbox(sharding.initial(task))
    params, stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    recipe = t2i.Recipe(task, t2i.DataConfig(), t2i.TrainConfig(steps=1, batch_size=1))
    return folders.Contents(folder, recipe, params, {}, stats, parts or {})


@pytest.mark.parametrize("model", ["parti", "paper"])
@pytest.mark.parametrize("tokenizer", ["ViTVQGAN", "VQGanVAE", "VQGAN"])
def test_a_parti_on_a_tokenizer_that_the_package_lacks_is_refused(model, tokenizer, tmp_path):
    network = {
        "ViTVQGAN": lambda: t2i.ViTVQGAN(image_size=8, patch_size=4, dim=8, layers=1, heads=1),
        "VQGanVAE": lambda: t2i.VQGanVAE(dim=16, image_size=8, layers=1, codebook_size=4),
        "VQGAN": lambda: t2i.VQGAN(image_size=32),
    }[tokenizer]()
    makes = {
        "parti": t2i.Parti(dim=8, depth=1, heads=1, dim_head=8),
        "paper": t2i.PartiTransformer(dim=8, depth=1, heads=1, mlp_dim=8),
    }
    task = t2i.PartiTask(makes[model], t2i.StoredText(dim=8, max_length=3), network)
    train = (t2i.DataConfig(), t2i.TrainConfig(steps=1, batch_size=1))
    part = folders.Contents(
        tmp_path, t2i.Recipe(t2i.TokenizerTask(network), *train), {}, {}, {}, {}
    )
    contents = folders.Contents(
        tmp_path, t2i.Recipe(task, *train), {"parti": {"decoder": {}}}, {}, {}, {"tokenizer": part}
    )
    with pytest.raises(UserError, match="; ") as error:
        systems.weights_of(task).to_torch(contents, tmp_path / "out.pt")
    assert model == "paper" or f"tokenizer is a {tokenizer}, and" in str(error.value)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_stages_that_imagen_pytorch_does_not_load_are_told(suffix, tmp_path, capsys):
    task, told = toy_cascade.TASK, "can't load the weights of stages["
    unet = toy_cascade.UNET.clone(compat=("mid_heads",))
    for stages, count in (
        (task.stages, 2),
        ((dataclasses.replace(task.stages[0], unet=unet), task.stages[1]), 1),
        ((dataclasses.replace(task.stages[0], unet=unet),), 0),
    ):
        own = dataclasses.replace(task, stages=stages)
        contents = _of_zeros(own, tmp_path)
        systems.weights_of(own).to_torch(contents, tmp_path / f"out{suffix}")
        said = capsys.readouterr().err
        assert said.count(told) == count == said.count("train with compat=('mid_heads',)")


@pytest.mark.parametrize("name", ["parti", "imagen", "maskgit", "decoder"])
def test_a_text_encoder_of_its_own_is_not_left_out_without_a_word(name, tmp_path, capsys):
    text = t2i.LearnedText(dim=8, depth=1, heads=1, mlp_dim=8, vocab_size=16, max_length=3)
    task = {
        "parti": lambda: t2i.PartiTask(
            t2i.Parti(dim=8, depth=1, heads=1, dim_head=8, fmap_size=2, codebook_size=4), text
        ),
        "imagen": lambda: dataclasses.replace(toy_cascade.TASK, text=text),
        "maskgit": lambda: dataclasses.replace(toy_muse.TASK, text=text),
        "decoder": lambda: dataclasses.replace(test_decoder.STORED, text=text),
    }[name]()
    contents = _of_zeros(task, tmp_path)
    try:
        systems.weights_of(task).to_torch(contents, tmp_path / "out.pt")
        said = capsys.readouterr().err
    except UserError as error:
        said = str(error)
    assert "run has its own text encoder, and" in said and "no place for it" in said


def test_a_t5_below_the_home_folder_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t5").mkdir()
    given = types.SimpleNamespace(dim=8)
    monkeypatch.setattr("t2i_jax.text.t5.T5Text.from_directory", lambda *_, **__: given)
    assert imported.TorchFile("a.pt", "~/t5", {}, {}).text(8, name="t5-large") is given
    with pytest.raises(UserError, match="t5='~/no' is not 't5-large'"):
        imported.TorchFile("a.pt", "~/no", {}, {}).text(8, name="t5-large")
