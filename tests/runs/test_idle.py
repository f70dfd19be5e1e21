"""Settings of a recipe that have no effect beside others: they are told before anything trains."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

import t2i_jax as t2i
from t2i_jax import config, runs
from t2i_jax.errors import UserError
from t2i_jax.quickstart import run as quickstart
from t2i_jax.runs.check import check
from t2i_jax.runs.recipe import Recipe, changed, load_recipe
from t2i_jax.systems.text_to_image import TextToImage
from tests.e2e import tiny, tiny_imagen, tiny_maskgit
from tests.toy_system import pair
from tests.toy_system import recipe as toy

_SHIPPED = sorted((pathlib.Path(__file__).resolve().parents[2] / "configs").glob("*/*.py"))


def _idle(recipe):
    """What is told of the fields of all stages, each as it stands alone."""
    for part in recipe.parts.values():
        yield from _idle(part) if isinstance(part, Recipe) else ()
    of_parts = [part.field for part in recipe.task.parts.values()]
    yield from config.idle(recipe.task, "task", of_parts)
    for name in ("data", "train", "evaluation"):
        yield from config.idle(getattr(recipe, name), name)


@pytest.mark.parametrize("path", _SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_recipe_sets_nothing_that_has_no_effect(path):
    assert list(_idle(load_recipe(path))) == []


def test_neither_does_the_quickstart_nor_a_recipe_of_the_tests():
    for get_config in (quickstart.get_config, tiny.get_config, toy.get_config):
        assert check(get_config()) == []


@pytest.mark.parametrize(
    ("module", "overrides", "told"),
    [
        (tiny, ["train.optim.decay_from=5"], "train.optim.decay_from=5 has no .* schedule='const"),
        (tiny, ["train.optim.end_ratio=0.5"], "schedule='constant'"),
        (tiny, ["train.optim.matrix_rate=0.5"], "matrix_rate=0.5 has no effect with name='adamw'"),
        (
            tiny,
            ["train.optim.schedule=cosine", "train.optim.warmup_steps=9", "train.steps=9"],
            "schedule='cosine' has no effect with steps=9, as the decay begins after step 9",
        ),
        (tiny, ["train.rules=fsdp"], "train.rules='fsdp' has no effect with a mesh that has nei"),
        (tiny, ["tokenizer.data.heldout=0.1"], "tokenizer.data.heldout=0.1 has no effect with sou"),
        (tiny, ["tokenizer.task.gan_start=5"], "gan_start=5 has no effect with discriminator=None"),
        (tiny, ["tokenizer.evaluation.judge=shapes"], "TokenizerTask, which is given no captions"),
        (tiny, ["tokenizer.task.model.decay=0.5"], "task.model.decay=0.5 has no effect with looku"),
        (tiny, ["evaluation.mode=tf"], r"mode='tf' has no effect with metrics=\(\), of which none"),
        (tiny_imagen, ["task.stages.0.churn.amount=5"], "'ancestral', unless sampling names"),
        (tiny_imagen, ["task.stages.0.lowres.sample_level=0.3"], "the first stage, which enlarges"),
        (tiny_imagen, ["task.stages.1.unet.text_embed_dim=99"], "=99 has no .*, which the task se"),
        (tiny_imagen, ["task.stages.0.noise.p2_k=3.0"], "p2_k=3.0 has no effect with weighting="),
        (tiny_maskgit, ["task.critic_loss_weight=2.0"], "critic=None"),
        (tiny_maskgit, ["task.self_cond_prob=0.5"], "model.self_cond=False"),
    ],
)
def test_a_setting_without_an_effect_is_told(module, overrides, told):
    (said,) = check(changed(module.get_config(), overrides))
    assert re.search(told, said), said


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (t2i.LowresBlur(sample_level=0.5), "sample_level=0.5 has no effect with noise=False"),
        (t2i.LowresBlur(blur_prob=0.0, sigma=1.0), "sigma=1.0 has no effect with blur_prob=0"),
        (t2i.DiscreteDdpm(p2_k=2.0), "p2_k=2.0 has no effect with p2_gamma=0"),
        (t2i.DecoderStage(t2i.DecoderUnet(8), 8, eta=0.5), "eta=0.5 .* unless sampling names ddim"),
        (t2i.DecoderStage(t2i.DecoderUnet(8), 8, latent_scale=2.0), "latent=False"),
        (t2i.DecoderUnet(8, num_image_tokens=2), "cond_on_image_embeds=False"),
        (
            t2i.DecoderTask((t2i.DecoderStage(t2i.DecoderUnet(8), 8),), text_cond_drop_prob=0.2),
            "U-Nets that have cond_on_text_encodings=False",
        ),
        (t2i.Unet(8, init_conv_kernel_size=5), "=5 has no effect with init_cross_embed=True"),
        (t2i.ClipTask(t2i.CLIP(), multiview_loss_weight=0.2), "views=None"),
        (t2i.ClipTask(t2i.CLIP(), compat=("filip_image_to_text",)), "use_all_token_embeds=False"),
        (t2i.VisualSsl(temperature=0.2), "kind='simsiam'"),
        (t2i.Views(dropped_words=0.3), "texts=0"),
        (
            t2i.MaskGitTask(
                t2i.MaskGitTransformer(dim=8, depth=1, heads=1, codebook_size=8, fmap_size=2),
                superres_tokenizer=t2i.VQGanVAE(8),
            ),
            "cond_image_size=None",
        ),
        (t2i.VQGanVAE(32, codebook_dim=8), "lookup_free_quantization=True"),
        (t2i.VQGAN(kl_weight=1.0), "kl_weight=1.0 has no effect with assignment='nearest'"),
        (t2i.Evaluation(weights={"clip": "folder"}), r"weights=.* with metrics=\(\)"),
        (t2i.DataConfig("folder:photos", seed=3), "seed=3 has no effect with source='folder:phot"),
    ],
)
def test_a_value_tells_it_of_its_own_fields(setting, told):
    (said,) = config.idle(setting)
    assert re.search(told, said), said


@pytest.mark.parametrize("task", [tiny_imagen.get_config().task, tiny_maskgit.get_config().task])
def test_what_is_judged_by_captions_has_no_effect_without_them(task):
    """It ended in a stack trace when all was trained."""
    judged = t2i.Evaluation(judge="shapes", pictures=2, completions=2)
    train = (t2i.DataConfig(), t2i.TrainConfig(steps=1, batch_size=1))
    recipe = t2i.Recipe(dataclasses.replace(task, text=None), *train, evaluation=judged)
    said = config.idle(recipe, without=("data", "train", "task", "parts"))
    assert [one.split("=")[0] for one in said] == ["evaluation.judge", "evaluation.completions"]
    assert all("which is given no captions" in one for one in said)

    class Blank(TextToImage):
        def generate(self, *_, images_per_prompt, **__):
            return np.zeros((images_per_prompt, 16, 16, 3), np.uint8)

    found = Blank(recipe.task, {}).evaluate(
        lambda count, wants: pytest.fail("nothing is held out"), judged
    )
    assert found.metrics == {} and list(found.sheets) == ["heldout"]


def test_a_part_that_nothing_reads_is_told():
    recipe = tiny_maskgit.get_config()
    parts = {**recipe.parts, "superres_tokenizer": recipe.parts["tokenizer"]}
    (said,) = check(dataclasses.replace(recipe, parts=parts))
    assert said == (
        "superres_tokenizer is given, and nothing reads it with task.cond_image_size=None."
    )


def test_it_is_told_before_anything_trains(tmp_path, capfd):
    recipe = toy.get_config().parts["mean"]
    runs.train(
        changed(recipe, ["train.steps=1", "train.optim.decay_from=5", "train.eval_every=0"]),
        tmp_path / "run",
    )
    told = capfd.readouterr().err
    assert "train.optim.decay_from=5 has no effect with schedule='constant'.\n" in told


def test_a_setting_of_training_for_a_task_that_trains_nothing_is_refused():
    recipe = pair.get_config()
    with pytest.raises(
        UserError,
        match="^train.steps is given for PairTask, which trains nothing "
        r"itself; give mean.train.steps or toy.train.steps, or \*.train.steps",
    ):
        changed(recipe, ["train.steps=5"])
    assert changed(recipe, ["*.train.steps=5"]).parts["toy"].train.steps == 5
    joined = dataclasses.replace(recipe, train=t2i.TrainConfig(steps=5))
    (said,) = config.idle(joined, without=("parts", "task"))
    assert said.endswith("has no effect with PairTask, which trains nothing itself.")
