"""State dicts behind wrappers, in checkpoints and beside averages give the network that is in them;
what does not fit is named.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import t2i_jax as t2i
from t2i_jax import convert
from t2i_jax.convert import engine, state_dict, vit_vqgan
from t2i_jax.errors import UserError
from tests.parity import reference

VAE = t2i.VitVQGanVAE(
    dim=8, image_size=8, patch_size=4, layers=1, heads=1, dim_head=8, ff_mult=1, codebook_size=16,
    discr_layers=0,
)  # fmt: skip


def _random(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: np.asarray(rng.normal(size=a.shape) if a.dtype.kind == "f" else 1, a.dtype),
        shapes,
    )


@pytest.fixture(scope="module")
def weights():
    return _random(vit_vqgan.NETWORK.shapes(VAE), 0)


@pytest.fixture(scope="module")
def state(weights):
    return convert.to_state(VAE, weights)


def _wrapped(state, name):
    """What a module of that name around a network makes of its state dict."""
    return {f"{name}.{key}": value for key, value in state.items()}


def _inside(state, at):
    """What torch.compile of a module within a network makes of its state dict."""
    return {
        ".".join([*(parts := key.split("."))[:at], "_orig_mod", *parts[at:]])
        if key.count(".") >= at
        else key: value
        for key, value in state.items()
    }


def _averaged(state, _):
    other = {f"online_model.{key}": np.zeros_like(value) for key, value in state.items()}
    return {**other, **_wrapped(state, "ema_model"), "initted": np.ones(1), "step": np.ones(1)}


def _counted(state, _):
    return {"n_averaged": np.int64(3), **_wrapped(state, "module")}  # AveragedModel


def _nested(state, name):
    return {"epoch": 3, "none": None, name: state, "optimizer": {"state": {0: {"a": np.ones(2)}}}}


def _flat_again(state, step, argument):
    return step(state_dict.flat(state), argument)


WRAPPERS = [
    *((_wrapped, name) for name in (*state_dict.WRAPPERS, "model", "net", "vae", "generator", "0")),
    *((_inside, at) for at in (1, 2, 3)),
    (_averaged, None),
    (_counted, None),
    *((_nested, name) for name in ("state_dict", "model", "ema", "whatever")),
]


@given(st.lists(st.sampled_from(WRAPPERS), max_size=6))
def test_any_nesting_of_wrappers_is_undone(state, steps):
    loaded = state
    for step, argument in steps:
        loaded = _flat_again(loaded, step, argument) if step is not _nested else step(
            loaded, argument
        )  # fmt: skip
    network, found, _ = convert._found(loaded, None)
    assert network.model is t2i.VitVQGanVAE and found.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_wrapped_network_is_converted_as_the_network_itself(state, weights):
    ddp = _averaged(_wrapped(_wrapped(state, "_orig_mod"), "module"), None)
    model, found = convert.from_torch({"state_dict": _wrapped(ddp, "model")}, codebook_size=16)
    assert model.image_size == 8
    jax.tree.map(np.testing.assert_array_equal, found, dict(weights))


def test_of_several_networks_the_one_that_is_meant_is_taken(state):
    other = {name: value + 1 for name, value in state.items()}

    def found(loaded):
        return convert._found(loaded, None)[1]["enc_dec.decoder.1.3.weight"]

    wanted = state["enc_dec.decoder.1.3.weight"]
    for loaded in (
        {"model": state, "discarded": other},
        {"state_dict": {**_wrapped(state, "model.ema_model"), **_wrapped(other, "model.net")}},
        {"ema": _averaged(state, None), "model": other},
        {"model": other, "ema": state},
        {"state_dict": other, "state_dict_ema": state},
        {"params": other, "params_ema": state},
        {"model": _wrapped(other, "net"), "EMA": _wrapped(state, "module")},
        {"model": {**_wrapped(other, "net"), **_wrapped(state, "ema_net")}},
        {"model": other, "ema": _averaged(state, other), "ema_model": dict(state)},
    ):
        np.testing.assert_array_equal(found(loaded), wanted)
    with pytest.raises(UserError, match="2 networks of one kind, at a, b;"):
        found({"a": state, "b": other})
    with pytest.raises(UserError, match="2 networks of one kind, at ema, model_ema;"):
        found({"model": other, "ema": state, "model_ema": other})


@pytest.mark.parametrize(
    "name",
    "swa_model averaged modelEMA ema0.999 ema-weights shadow average_model emaModel".split(),
)
def test_an_average_is_known_by_its_name_and_the_network_beside_it_is_told(state, name, capsys):
    other = {key: value + 1 for key, value in state.items()}
    _, found, _ = convert._found({"model": other, name: state}, None)
    key = next(iter(state))
    np.testing.assert_array_equal(found[key], state[key])
    told = capsys.readouterr().err
    assert f"those at {name} are taken and those at model are not" in told
    convert._found({"model": state, name: dict(state)}, None)
    assert not capsys.readouterr().err  # the same arrays


def test_an_average_is_known_by_its_count(state, capsys):
    other = {key: value + 1 for key, value in state.items()}
    counted = {"n_averaged": np.int64(5), **_wrapped(state, "module")}
    _, found, _ = convert._found({"model": other, "second": counted}, None)
    key = next(iter(state))
    np.testing.assert_array_equal(found[key], state[key])
    assert "those at second are taken" in capsys.readouterr().err


def test_what_is_passed_over_beside_the_usual_place_is_told(state, capsys):
    other = {key: value + 1 for key, value in state.items()}
    beside = {
        "best_model": {"best_model": other},
        "ema.shadow_params": {"ema": {"decay": 0.9, "shadow_params": list(other.values())}},
        "callbacks.EMA.ema_weights": {"callbacks": {"EMA": {"ema_weights": [*other.values()]}}},
    }
    for place, more in beside.items():
        convert._found({"model": state, **more}, None)
        assert f"those at model are taken and those at {place} are not" in capsys.readouterr().err
    moments = {"optimizer": {"state": {"exp_avg": list(other.values())}}}
    convert._found({"model": state, **moments}, None)
    assert not capsys.readouterr().err


def _without_dots(state, by=""):
    return {name.replace(".", by): value for name, value in state.items()}


def _lit(state):
    """The average of latent-diffusion's LitEma."""
    return {**_without_dots(state), "decay": np.float32(0.9), "num_updates": np.int32(3)}


def test_an_average_that_lost_its_dots_is_taken_and_told(state, capsys):
    """At the top, below a place, inside the module around the network, and with underscores; what
    it does not average stays the network's own.
    """
    other = {key: value + 1 for key, value in state.items()}
    trained = dict(list(state.items())[:-2])
    vae = {f"vae.{key}": value for key, value in other.items()}
    for loaded, taken, left in (
        ({"model": other, "ema": _lit(state)}, "ema", "model"),
        ({"model": other, "ema": _without_dots(state, "_")}, "ema", "model"),
        ({**other, "model_ema": _lit(state)}, "model_ema", "the top"),
        ({"state_dict": {**vae, "vae.model_ema": _lit(state)}}, "state_dict.vae.model_ema",
         "state_dict.vae"),
        ({"model": vae, "model_ema": _lit(_wrapped(state, "vae"))}, "model_ema", "model.vae"),
        ({"model": other, "model_ema": _lit(trained)}, "model_ema", "model"),
        ({**other, "ema": state}, "ema", "the top"),
    ):  # fmt: skip
        network, found, _ = convert._found(loaded, None)
        assert network.model is t2i.VitVQGanVAE and found.keys() == state.keys()
        partial = len(loaded.get("model_ema", ())) == len(trained) + 2
        for name, value in found.items():
            wanted = state if name in trained or not partial else other
            np.testing.assert_array_equal(value, wanted[name])
        told = capsys.readouterr().err
        assert f"those at {taken} are taken and those at {left} are not" in told


def test_two_averages_without_their_dots_are_refused(state):
    with pytest.raises(UserError, match="2 averages of one network, at ema_1, ema_2;"):
        convert._found({"model": state, "ema_1": _lit(state), "ema_2": _lit(state)}, None)


def test_an_average_of_other_shapes_or_of_another_network_is_not_taken(state, capsys):
    small = {key: np.zeros((2, *np.shape(value))) for key, value in state.items()}
    of_others = {"unetin": np.ones(2), "unetout": np.ones(2)}
    for name, average, told in (
        ("ema", _lit(small), "those at model are taken and those at ema are not"),
        ("ema", of_others, ""),
    ):
        _, found, _ = convert._found({"model": state, name: average}, None)
        jax.tree.map(np.testing.assert_array_equal, found, dict(state))
        said = capsys.readouterr().err
        assert told in said and bool(told) == bool(said)


@pytest.mark.parametrize(
    "beside",
    [
        {"optimizer": None, "lr_scheduler": None, "ds_config": {"a": 1}, "dp_world_size": 1},
        {"epoch": 3},
        {"step": np.int64(3), "optimizer": {"state": {0: {"exp_avg": np.ones(2)}}}},
    ],
)
def test_a_module_beside_other_entries_is_a_place_of_weights(state, beside):
    """As DeepSpeed and accelerate write it."""
    other = {key: value + 1 for key, value in state.items()}
    for loaded in (
        {"module": state, **beside},
        {**beside, "module": _wrapped(state, "module")},
        {"state": {"module": state, **beside}},
        {"module": other, "module_ema": state, **beside},
        {"module": _counted(state, None), **beside},
        {"module": state, "discarded": other, **beside},
    ):
        network, found, _ = convert._found(loaded, None)
        assert network.model is t2i.VitVQGanVAE and found.keys() == state.keys()
        jax.tree.map(np.testing.assert_array_equal, found, dict(state))


def test_what_is_no_average_is_not_taken_for_one(state, capsys):
    other = {key: value + 1 for key, value in state.items()}
    for loaded, taken, left in (
        ({"ema": state, "non_ema": other}, "ema", "non_ema"),
        ({"model": state, "no_ema": other}, "model", "no_ema"),
        ({"model": state, "withoutEMA": other}, "model", "withoutEMA"),
        ({"ema": {"shadow": state, "backup": other}}, "ema.shadow", "ema.backup"),
        ({"model": other, "emas": [state]}, "emas.0", "model"),
    ):
        _, found, _ = convert._found(loaded, None)
        jax.tree.map(np.testing.assert_array_equal, found, dict(state))
        told = capsys.readouterr().err
        assert f"those at {taken} are taken and those at {left} are not" in told
    with pytest.raises(UserError, match="2 networks of one kind, at emas.0, emas.1;"):
        convert._found({"net": state, "emas": [state, other]}, None)


def test_two_arrays_of_one_name_must_be_equal(state):
    name, value = next(iter(state.items()))
    assert convert._found({**state, f"module.{name}": value.copy()}, None)[1].keys() == state.keys()
    with pytest.raises(UserError, match="are one array and differ"):
        convert._found({**state, f"module.{name}": value + 1}, None)


def test_an_average_of_torch_is_the_network_in_it():
    torch = pytest.importorskip("torch")
    theirs = reference.load("parti_pytorch").VitVQGanVAE(
        dim=8, image_size=8, layers=1, encdec_patch_size=4, encdec_heads=1, encdec_dim_head=8,
        codebook_size=16, use_vgg_and_gan=False,
    )  # fmt: skip
    averaged = torch.optim.swa_utils.AveragedModel(theirs)
    wanted = convert.from_torch(theirs)[1]
    for source in (averaged, averaged.state_dict(), {"ema": averaged.state_dict()}):
        jax.tree.map(np.testing.assert_array_equal, convert.from_torch(source)[1], wanted)
    of_one = {"n_averaged": np.int64(3), **convert.to_torch(*convert.from_torch(theirs))}
    with pytest.raises(UserError, match="n_averaged is not known here"):
        convert.from_torch(of_one)


def test_the_live_module_within_wrappers_is_found():
    torch = pytest.importorskip("torch")
    inner = torch.nn.ModuleDict({"downs": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})

    class Wrapper(torch.nn.Module):
        def __init__(self, name, module):
            super().__init__()
            self.add_module(name, module)

    outer = Wrapper("model", Wrapper("module", Wrapper("_orig_mod", Wrapper("ema_model", inner))))
    name = next(iter(outer.state_dict()))
    assert name == "model.module._orig_mod.ema_model.downs.0.weight"
    assert state_dict.inner(outer, name, "model.ema_model.") is inner
    listed = torch.nn.Sequential(torch.nn.ModuleList([Wrapper("module", inner)]))
    assert state_dict.inner(listed, "0.0.module.downs.0.weight", "0.0.") is inner


@given(data=st.data())
@settings(max_examples=settings.default.max_examples // 3)
def test_one_array_of_another_kind_is_named_and_never_a_trace(state, data):
    name = data.draw(st.sampled_from(sorted(state)))
    value = data.draw(st.sampled_from([
        2.0, np.float32(1), None, "x", [1.0], np.zeros(()), np.zeros((0,)), np.zeros((1, 1)),
        np.zeros((3, 4, 5)), np.zeros((3, 4, 5, 6, 7)), np.array(["a"]), np.zeros(2, complex),
    ]))  # fmt: skip
    if np.shape(value) == np.shape(state[name]):
        return  # a scalar stays one
    with pytest.raises(UserError, match="the weights"):
        convert.from_torch({**state, name: value})


@pytest.mark.parametrize("name", ["enc_dec.decoder.1.3.weight", "enc_dec.encoder.1.norm.gamma"])
def test_values_that_are_not_finite_are_named(state, name):
    for wrong in (np.nan, np.inf, 1e39):
        value = state[name].astype(np.float64)
        value.flat[1] = wrong
        with pytest.raises(UserError, match=rf"{name} has 1 of {value.size} values"):
            convert.from_torch({**state, name: value})
    with pytest.raises(UserError, match=f"{name} has only values that are not finite"):
        convert.from_torch({**state, name: np.full_like(state[name], np.nan)})
    with pytest.raises(UserError, match=f"{name} is of the type int8 instead of float32"):
        convert.from_torch({**state, name: state[name].astype(np.int8)})


@pytest.mark.parametrize("source", [None, 3, [], {}, {"a": None}, {"a": {"b": "c"}}, b"x"])
def test_what_holds_no_arrays_is_said(source):
    with pytest.raises(UserError, match="holds no array by name"):
        convert.from_torch(source)


def test_containers_that_hold_themselves_and_names_of_other_types():
    loop: dict = {0: np.ones(1), None: np.ones(2), "a": [{"b": np.ones(3)}, 1]}
    loop["self"] = loop
    assert state_dict.flat(loop).keys() >= {"0", "None", "a.0.b"}
    with pytest.raises(UserError, match="two entries named '0'"):
        state_dict.flat({0: np.ones(1), "0": np.ones(1)})
    with pytest.raises(UserError, match="a layer that no network has"):
        convert._check_numbers(["enc_dec.encoder.1.layers.99999.0.weight"])


def test_options_of_the_converter_are_checked_like_fields(state):
    for fields, said in (
        ({"pixel_range": 5}, "pixel_range=5 is not several values"),
        ({"heads": "x"}, "heads='x' is not a whole number"),
        ({"dtype": "fp16"}, "dtype='fp16'"),
        ({"path": 1}, "no field 'path'"),
        ({"source": 1}, "no field 'source'"),
        ({"unets": 1}, "no field 'unets'"),
    ):
        with pytest.raises(UserError, match=said):
            convert.from_torch(state, **fields)


def test_a_watched_state_dict_tells_the_last_array_of_its_parts():
    watched = engine.Watched({"vae.a": np.zeros((2, 3)), "b": np.zeros(())})
    assert engine.part(watched, "vae.")["a"].shape == (2, 3)
    assert watched.last == ["vae.a has shape (2, 3)"] and watched.get("c") is None
