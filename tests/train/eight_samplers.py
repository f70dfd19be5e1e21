"""Images that eight devices sample are those of one: cases of eight.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax.on_host import initialise
from tests.train.eight_networks import unet, vit_vqgan
from tests.train.meshes import MESHES
from tests.weights import moved


def muse_sampling():
    """Both stages of Muse, one with a critic, sample on a mesh what they do on one device, with
    windows.
    """
    from t2i_jax.models.maskgit import MaskGitTransformer, TokenCritic
    from t2i_jax.systems.muse.system import MuseSystem
    from t2i_jax.systems.muse.task import MuseTask
    from t2i_jax.systems.placing import on_mesh
    from tests.systems import toy_muse

    network = MaskGitTransformer(**toy_muse.SIZES)
    critic = TokenCritic(**toy_muse.SIZES)
    task = dataclasses.replace(toy_muse.SUPERRES, model=network, critic=critic)
    stages = [toy_muse.system_of(one) for one in (toy_muse.TASK, task)]
    system = MuseSystem(MuseTask(), {}, *stages)
    there = system.on_mesh(MESHES["fsdp_tp"])
    assert on_mesh(stages[0], {"data": 8}).mesh.size == 8
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(there.superres.weights)]
    assert any("tensor" in spec for spec in specs)
    captions = ["green", "zebra", "red circle", "blue squares"]
    options = {"temperature": 0.0, "steps": 2, "superres_steps": 2, "image_size": (16, 24)}
    alone, shared = (one.generate(captions, **options).astype(int) for one in (system, there))
    assert alone.shape == (4, 16, 24, 3) and np.ptp(alone) > 10
    assert np.mean(np.abs(alone - shared) > 1) < 0.01  # a tie may go another way


def sampling():
    """Images of Parti and of a cascade on a mesh are those of one device."""
    from t2i_jax.models import image_tokenizer
    from t2i_jax.models.parti_transformer import PartiTransformer
    from t2i_jax.systems.cascade.stage import Stage
    from t2i_jax.systems.imagen.system import ImagenSystem
    from t2i_jax.systems.imagen.task import ImagenTask
    from t2i_jax.systems.parti.system import PartiSystem
    from t2i_jax.systems.parti.task import PartiTask
    from t2i_jax.systems.placing import on_mesh
    from t2i_jax.text.stored import StoredText

    text, key = StoredText(dim=8, max_length=4), jax.random.key(0)
    prompts = (
        np.random.default_rng(0).normal(size=(4, 4, 8)).astype(np.float32),
        np.ones((4, 4), bool),
    )
    net = vit_vqgan().clone(image_size=8, patch_size=2)
    parti = PartiTask(PartiTransformer(dim=16, depth=1, heads=2, mlp_dim=32), text, net)
    cascade = ImagenTask((Stage(unet(max_text_len=4), image_size=8),), text)
    weights = moved(initialise(cascade.init, key)[0], 0.1)
    tokenizer = {"tokenizer": initialise(functools.partial(image_tokenizer.init, net), key)}
    for system, options in (
        (PartiSystem(parti, initialise(parti.init, key)[0], tokenizer), {"temperature": 0.0}),
        (ImagenSystem(cascade, weights, {"stage_1": 1}), {"steps": 3, "sampler": "ddim"}),
    ):
        there = on_mesh(system, {"data": 2, "fsdp": 2, "tensor": 2})
        if system.task is parti:
            _cache_is_shared_out(there, prompts)
        assert any("tensor" in leaf.sharding.spec for leaf in jax.tree.leaves(there.weights))
        alone, shared = (one.generate(prompts, **options).astype(int) for one in (system, there))
        assert np.ptp(alone) > 10 and np.max(np.abs(alone - shared)) <= 1, type(system).__name__


def _cache_is_shared_out(system, prompts):
    """In the compiled program a device keeps the past of its own rows (8 with guidance, over 4) and
    heads (2, over 2).
    """
    from t2i_jax.systems.parti import sampling
    from t2i_jax.systems.parti.options import PartiOptions

    rows, keys = (
        dict(zip(("text_embeds", "text_mask"), prompts, strict=True)),
        jax.random.split(jax.random.key(0), 4),
    )
    one = jnp.float32(1)
    with jax.set_mesh(system.mesh):
        program = (
            sampling.generate.lower(
                system.weights["parti"],
                system.frozen,
                rows,
                keys,
                task=system.task,
                guidance=one,
                temperature=one,
                sampling=PartiOptions().sampling,
            )
            .compile()
            .as_text()
        )
    # rows, positions, heads, width
    assert "f32[2,16,1,8]" in program and "f32[8,16,2,8]" not in program


CASES = (muse_sampling, sampling)
