"""Every argument of the packages' constructors is honoured, or refused by its name: from a live
module, from a stored configuration, and as a field on the command line.

The tables of `convert.arguments` have a row for each argument of the installed packages. Each row
has a trial here: another value than the default, and where it arrives. That the networks compute
the same with it is shown beside it, or by the configurations of the other parity tests, which are
asked whether they have it.
"""

import inspect

import pytest

from t2i_jax import convert
from t2i_jax.convert import arguments
from t2i_jax.convert.arguments import NO_EFFECT, READ, Only
from t2i_jax.errors import UserError
from tests.parity import test_unet
from tests.parity.reference import load

imagen_pytorch = load("imagen_pytorch")
parti_pytorch = load("parti_pytorch")
quantizers = load("vector_quantize_pytorch")
package = load("imagen_pytorch.imagen_pytorch")
configs = load("imagen_pytorch.configs")

CONSTRUCTORS = {
    "Unet": (package.Unet, arguments.UNET),
    "Imagen": (imagen_pytorch.Imagen, arguments.IMAGEN),
    "ElucidatedImagen": (imagen_pytorch.ElucidatedImagen, arguments.ELUCIDATED_IMAGEN),
    "ImagenTrainer": (imagen_pytorch.ImagenTrainer, arguments.IMAGEN_TRAINER),
    "VitVQGanVAE": (parti_pytorch.VitVQGanVAE, arguments.VIT_VQGAN_VAE),
    "ViTEncDec": (parti_pytorch.vit_vqgan.ViTEncDec, arguments.VIT_ENC_DEC),
    "LFQ": (quantizers.LFQ, arguments.LFQ),
    "VectorQuantize": (quantizers.VectorQuantize, arguments.VECTOR_QUANTIZE),
    "Parti": (parti_pytorch.Parti, arguments.PARTI),
}


def parameters(constructor):
    return dict(list(inspect.signature(constructor.__init__).parameters.items())[1:])


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_argument_of_the_installed_package_is_decided(name):
    constructor, rows = CONSTRUCTORS[name]
    assert set(parameters(constructor)) == set(rows), "decide what becomes of it"


def test_an_argument_of_another_release_is_refused():
    with pytest.raises(UserError, match="Unet has new_option=3, an argument of no release"):
        arguments.check("Unet", arguments.UNET, {"dim": 8, "new_option": 3})
    theirs = package.Unet(**test_unet.SMALL)
    theirs._locals["new_option"] = True
    with pytest.raises(UserError, match="new_option=True"):
        convert.from_torch(theirs)


def test_configurations_and_presets_have_no_arguments_of_their_own():
    for name, rows in (
        ("ImagenConfig", arguments.IMAGEN),
        ("ElucidatedImagenConfig", arguments.ELUCIDATED_IMAGEN),
    ):
        fields = getattr(configs, name).model_fields
        assert set(fields) <= {*rows, *arguments.IN_A_CONFIG}
    assert set(configs.UnetConfig.model_fields) <= set(arguments.UNET)
    assert set(configs.NullUnetConfig.model_fields) == {"is_null"}
    for name in ("BaseUnet64", "SRUnet256", "SRUnet1024", "NullUnet"):
        assert set(parameters(getattr(imagen_pytorch, name))) == {"args", "kwargs"}


@pytest.mark.parametrize(
    ("values", "within", "without"),
    [
        ((1,), [1, 1.0, (1, 1), [1.0]], [True, "1", None, 2, (1, 2), (), {1}]),
        ((None, True), [None, True, (True, None)], [1, False, "None"]),
        (((),), [(), []], [(3,), [0], "vae", None, 0, {}]),
        (((1, 2), 5), [(1, 2), [1, 2], 5, (5, 5)], [(2, 1), 1, (1, 2, 5)]),
    ],
)
def test_values_of_every_type_are_within_or_without(values, within, without):
    only = Only(*values)
    assert all(value in only for value in within)
    assert not any(value in only for value in without)


def test_rows_are_of_the_three_kinds():
    for _, rows in CONSTRUCTORS.values():
        assert all(row in (READ, NO_EFFECT) or isinstance(row, Only) for row in rows.values())
