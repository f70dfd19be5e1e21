"""MaskGIT and Muse, tiny: tasks, weights, systems and captions for the tests of both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from t2i_jax import sharding
from t2i_jax.models import image_tokenizer
from t2i_jax.models.maskgit import MaskGitTransformer, TokenCritic
from t2i_jax.models.vqgan import VQGanVAE
from t2i_jax.on_host import initialise
from t2i_jax.systems.maskgit.system import MaskGitSystem
from t2i_jax.systems.maskgit.task import MaskGitTask
from t2i_jax.text.classes import ClassLabels
from t2i_jax.text.stored import StoredText

TOKENIZER = VQGanVAE(
    dim=4,
    image_size=8,
    layers=1,
    layer_mults=(1,),
    resnet_groups=2,
    first_conv_kernel_size=3,
    codebook_size=16,
)
SIZES = dict(dim=16, depth=1, heads=2, dim_head=8, ff_mult=1)
NETWORK = MaskGitTransformer(**SIZES)
TEXT = ClassLabels(("red circle", "blue squares", "green", "zebra"), dim=8)
TASK = MaskGitTask(NETWORK, TEXT, TOKENIZER)  # 4 x 4 tokens
SUPERRES = MaskGitTask(NETWORK, TEXT, TOKENIZER, image_size=16, cond_image_size=8)  # 8 x 8
CRITIC = TokenCritic(**SIZES)
# with stored text and tokens
STORED = MaskGitTask(NETWORK, StoredText(dim=6, max_length=4), TOKENIZER, stored_tokens=True)
CAPTIONS = ["a red circle", "two blue squares", "green"]


@functools.cache
def tokenizer_weights():
    return initialise(functools.partial(image_tokenizer.init, TOKENIZER), jax.random.key(7))


def params_of(task):
    """Parameters of a task, drawn large, so that captions matter; scales are about 1."""
    shapes = sharding.unbox(sharding.parameters_of(task))

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        noise = np.random.default_rng(sum(map(ord, name))).normal(size=leaf.shape)
        return np.float32(0.4 * noise + ("scale" in name))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def system_of(task, params=None):
    frozen = {} if task.tokenizer is None else {"tokenizer": tokenizer_weights()}
    text = None if task.text is None else task.text.tokenizer()
    return MaskGitSystem(task, params or params_of(task), frozen, text)


def images_of(rows, *size):
    return np.random.default_rng(1).integers(0, 256, (rows, *size, 3), dtype=np.uint8)


_tokens = jax.jit(functools.partial(image_tokenizer.tokens, TOKENIZER))


def tokens_of(images):
    return np.asarray(_tokens(tokenizer_weights(), images))


def batch_of(task, rows=4):
    rng = np.random.default_rng(2)

    def tokens(s):
        return rng.integers(0, 16, s.shape, dtype=np.int32)

    draw = {
        "image": lambda s: rng.integers(0, 256, s.shape, dtype=np.uint8),
        "tokens": tokens,
        "superres_tokens": tokens,
        "cond_tokens": tokens,
        "text": lambda s: rng.integers(0, 4, s.shape, dtype=np.int32),
        "text_embeds": lambda s: rng.normal(size=s.shape).astype(np.float32),
        "text_mask": lambda s: (
            np.arange(s.shape[1])[None] < rng.integers(1, s.shape[1] + 1, s.shape[:1])[:, None]
        ),
    }
    return {name: draw[name](shape) for name, shape in task.batch_spec(rows).items()}


def loss_of(task, batch, params=None, key=3):
    """A step's loss and what else it returns."""
    params = params_of(task) if params is None else params
    frozen = {} if task.on_tokens else {"tokenizer": tokenizer_weights()}
    return jax.jit(task.loss)(params, {}, frozen, batch, jax.random.key(key), jnp.int32(0))
