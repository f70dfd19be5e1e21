import errno

import numpy as np
import pytest

from t2i_jax import convert
from t2i_jax.convert import engine, torch_io
from t2i_jax.convert.engine import CHANNEL, CONV, CONV1X1, DEPTHWISE, LINEAR, SAME, Constant, Entry
from t2i_jax.errors import UserError

TABLE = [
    Entry("fc.weight", "net/fc/kernel", LINEAR),
    Entry("layers.0.w", "net/layers/w", LINEAR, layer=0),
    Entry("layers.1.w", "net/layers/w", LINEAR, layer=1),
    Entry("tied.weight", ("net", "fc", "kernel"), LINEAR),
    Constant("index", np.arange(4)),
    Entry("scale", "stats/scale"),
]
SHAPES = {
    "net": {
        "fc": {"kernel": np.empty((3, 2), np.float32)},
        "layers": {"w": np.empty((2, 3, 5), np.float32)},
    },
    "stats": {"scale": np.empty((), np.float32)},
}


def state():
    rng = np.random.default_rng(0)
    fc = rng.normal(size=(2, 3)).astype(np.float32)
    layers = {f"layers.{i}.w": rng.normal(size=(5, 3)).astype(np.float32) for i in range(2)}
    return {
        "fc.weight": fc,
        **layers,
        "tied.weight": fc.copy(),
        "index": np.arange(4),
        "scale": np.float32(2.0),
    }


def test_there_and_back_is_the_same_bit_for_bit():
    ours = engine.to_ours(TABLE, state(), SHAPES)
    np.testing.assert_array_equal(ours["net"]["fc"]["kernel"], state()["fc.weight"].T)
    np.testing.assert_array_equal(ours["net"]["layers"]["w"][1], state()["layers.1.w"].T)
    back = engine.to_torch(TABLE, ours, SHAPES)
    assert list(back) == [entry.torch for entry in TABLE]
    for key, value in state().items():
        assert np.array_equal(back[key], value) and back[key].shape == np.shape(value), key


def test_several_arrays_of_theirs_are_parts_of_one_of_ours():
    table = [
        Entry(f"layers.{i}.{name}", "qkv", LINEAR, layer=i, share=(j, 3))
        for i in range(2)
        for j, name in enumerate("qkv")
    ]
    rng, shapes = np.random.default_rng(0), {"qkv": np.empty((2, 5, 12), np.float32)}
    theirs = {entry.torch: rng.normal(size=(4, 5)).astype(np.float32) for entry in table}
    ours = engine.to_ours(table, theirs, shapes)
    np.testing.assert_array_equal(ours["qkv"][1, :, 4:8], theirs["layers.1.k"].T)
    back = engine.to_torch(table, ours, shapes)
    assert all(np.array_equal(back[name], array) for name, array in theirs.items())
    with pytest.raises(UserError, match=r"layers.0.v has shape \(5, 5\) instead of \(4, 5\)"):
        engine.to_ours(table, theirs | {"layers.0.v": np.zeros((5, 5), np.float32)}, shapes)


def test_every_mistake_is_in_one_error():
    wrong = state() | {
        "extra": np.zeros(1),
        "layers.0.w": np.zeros((4, 3)),
        "tied.weight": np.zeros((2, 3)),
    }
    wrong["index"] = np.arange(1, 5)
    del wrong["scale"]
    with pytest.raises(UserError) as caught:
        engine.to_ours(TABLE, wrong, SHAPES)
    said = str(caught.value)
    assert "(5 arrays)" in said and "extra is not known" in said and "scale is missing" in said
    assert "layers.0.w has shape (4, 3) instead of (5, 3)" in said
    assert "tied.weight differs" in said and "index differs" in said


def test_a_constant_may_be_absent_and_comes_back():
    partial = {key: value for key, value in state().items() if key != "index"}
    back = engine.to_torch(TABLE, engine.to_ours(TABLE, partial, SHAPES), SHAPES)
    np.testing.assert_array_equal(back["index"], np.arange(4))


def test_export_leaves_out_an_optional_group_that_is_not_there():
    ours = engine.to_ours(TABLE, state(), SHAPES)
    assert "scale" not in engine.to_torch(
        TABLE, {"net": ours["net"]}, SHAPES, optional=[("stats",)]
    )
    with pytest.raises(UserError, match=r"\(1 array\): stats/scale is missing"):
        engine.to_torch(TABLE, {"net": ours["net"]}, SHAPES)


def test_every_mistake_of_an_export_is_in_one_error():
    ours = engine.to_ours(TABLE, state(), SHAPES)
    wrong = {
        "net": {"fc": {"kernel": np.zeros((2, 3))}, "more": np.zeros(1)},
        "other": np.zeros(2),
        "stats": {},
    }
    with pytest.raises(UserError) as caught:
        engine.to_torch(TABLE, wrong, SHAPES)
    said = str(caught.value)
    assert "(5 arrays)" in said and "net/fc/kernel has shape (2, 3) instead of (3, 2)" in said
    assert "net/layers/w is missing; stats/scale is missing; net/more is not known here" in said
    assert "other is not known" in said
    with pytest.raises(UserError, match="net/fc/kernel is missing; net/layers/w is missing"):
        engine.to_torch(TABLE, {"stats": ours["stats"]}, SHAPES)


LAYOUTS = {
    "same": (SAME, (2, 3)),
    "linear": (LINEAR, (2, 3)),
    "conv": (CONV, (2, 3, 4, 5)),
    "1x1": (CONV1X1, (2, 3, 1, 1)),
    "depthwise": (DEPTHWISE, (6, 1, 3, 4)),
    "channel": (CHANNEL, (1, 6, 1, 1)),
    "reshaped": (engine.reshaped((2, 6), (3, 4)), (2, 6)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_inverses(name):
    layout, shape = LAYOUTS[name]
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(layout.to_torch(layout.to_ours(array)), array)


def test_the_table_of_a_part_and_its_arrays():
    table = engine.within(TABLE, "vae.", "tokenizer")
    assert [entry.torch for entry in table] == [f"vae.{entry.torch}" for entry in TABLE]
    paths = [entry.path for entry in TABLE if isinstance(entry, Entry)]
    assert [entry.path for entry in table if isinstance(entry, Entry)] == [
        ("tokenizer", *path) for path in paths
    ]
    assert engine.part({"vae.a.vae.b": 1, "vae2.a": 2, "c": 3}, "vae.") == {"a.vae.b": 1}


def test_files_there_and_back(tmp_path):
    for name in ("w.safetensors", "w.pt"):
        torch_io.write(tmp_path / name, {"a": np.arange(6.0).reshape(2, 3).T})
        np.testing.assert_array_equal(
            torch_io.read(tmp_path / name)["a"], np.arange(6.0).reshape(2, 3).T
        )


def test_a_checkpoint_around_a_state_dict_is_opened(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(
        {"epoch": 3, "state_dict": {"a": torch.ones(2, dtype=torch.bfloat16)}}, tmp_path / "c.ckpt"
    )
    read = torch_io.read(tmp_path / "c.ckpt")
    assert read["a"].dtype == np.float32 and list(read) == ["a"]


class _Bad:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran",))


def test_a_pickle_with_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": _Bad()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="bad.pt.*refused.*safetensors"):
        torch_io.read(tmp_path / "bad.pt")


def test_files_that_are_none():
    with pytest.raises(UserError, match="is not a file"):
        torch_io.read("nowhere.pt")
    with pytest.raises(UserError, match="no network known here.*parti-pytorch image tokenizer"):
        convert.from_torch({"some.weight": np.zeros(1)})


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_is_the_reason_why_a_file_of_torch_is_not_written(tmp_path, size):
    pytest.importorskip("torch")
    (tmp_path / "a.pt").symlink_to("/dev/full")
    for write in (torch_io.write, torch_io.write_checkpoint):
        with pytest.raises(OSError) as raised:
            write(tmp_path / "a.pt", {"a": np.zeros(size, np.float32)})
        assert raised.value.errno == errno.ENOSPC
