"""The files of the metrics' networks: where they are looked for, and what is said of others."""

import dataclasses

import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval import extractors, weights_file
from t2i_jax.runs.scoring import networks
from t2i_jax.runs.scoring.networks import Weights
from tests.e2e.command import inside
from tests.runs import scoring_toys
from tests.runs.scoring_toys import toy_extractor, write_images

_toys = scoring_toys.in_place
_FILES = {
    "inception": ("pt_inception-2015-12-05-6726825d.pth", "inception.pth"),
    "clip": ("clip-vit-base-patch32", "clip"),
    "cmmd": ("clip-vit-large-patch14-336", "cmmd"),
    "dinov2": ("dinov2-large", "dinov2.pth"),
    "pickscore": ("PickScore_v1", "pickscore"),
    "hpsv2": ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt", "hpsv2.pt"),
    "alex": ("alexnet-owt-7be5be79.pth",),
    "vgg": ("vgg16-397923af.pth",),
}


@pytest.mark.parametrize(
    ("network", "name"), [(network, name) for network in _FILES for name in _FILES[network]]
)
def test_weights_are_found_by_their_published_names_and_by_their_options(
    tmp_path, monkeypatch, network, name
):
    """Of one network; those of all others are beside them, and what is not to be taken for them."""
    monkeypatch.setenv(networks.FOLDER, str(tmp_path))
    others = [names[0] for other, names in _FILES.items() if other != network]
    not_these = ("alexnet.pth", "inception_v3_google-0cc3c7bd.pth", "vgg16_bn-6c64b313.pth")
    for one in (*others, *not_these, "alex.pth", "inception-2015-12-05.pt", "vgg.pth", name):
        (tmp_path / one).touch()
    assert _FILES.keys() == {field.name for field in dataclasses.fields(Weights)}
    if name == "inception.pth":  # which clean-fid's program comes before
        (tmp_path / "inception-2015-12-05.pt").unlink()
    assert Weights().of(network) == tmp_path / name
    given = tmp_path / "given"
    assert Weights(**{network: given}).of(network) == given
    monkeypatch.delenv(networks.FOLDER)
    assert Weights().of(network) is None


def test_every_file_whose_hash_is_known_is_compared_with_it(monkeypatch, tmp_path, capfd):
    known = [what for what, one in weights_file.PUBLISHED.items() if one.sha256]
    for what in known:
        begins = weights_file.PUBLISHED[what].sha256
        assert weights_file.told_of_other(what, {"sha256": begins.ljust(64, "0")}) is None
        told = weights_file.told_of_other(what, {"sha256": "f" * 64, "file": "a.pth"})
        assert told and f"begins with {'f' * len(begins)}, not {begins}" in told
    assert known == ["inception", "lpips-alex", "lpips-vgg"]
    for trunk in ("alex", "vgg"):
        about = {"features": {"file": "x.pth", "sha256": "f" * 64}}
        one = networks.LpipsMetric(None, None, about)
        monkeypatch.setattr(networks.lpips, "lpips", lambda trunk, path, one=one: one)
        assert networks.build_lpips(Weights(**{trunk: tmp_path})) == {trunk: one}
        assert f"lpips-{trunk}=x.pth is not the published" in capfd.readouterr().err


def test_lpips_that_nobody_asked_for_is_left_out_without_its_package(monkeypatch, tmp_path, capfd):
    """As where T2I_WEIGHTS is the cache of PyTorch."""
    monkeypatch.setenv(networks.FOLDER, str(tmp_path))
    monkeypatch.setattr(networks.lpips, "installed_heads", lambda trunk: None)
    file = tmp_path / "vgg16-397923af.pth"
    file.write_bytes(b"weights")
    assert networks.build_lpips(Weights()) == {}
    assert "LPIPS is left out: T2I_WEIGHTS has vgg16-397923af.pth" in capfd.readouterr().err
    with pytest.raises(UserError, match="install lpips 0.1.4"):
        networks.build_lpips(Weights(vgg=file))


def test_weights_that_are_not_the_published_ones_are_told_and_noted(tmp_path, monkeypatch):
    """Any network of as many outputs is read as Inception."""
    made, out = write_images(tmp_path / "made", 3), tmp_path / "out"
    command = ("evaluate", "--images", made, "--mode", "clean,tf", "--metrics", "is", "--out", out)
    assert "not the published" not in inside(*command).stderr
    assert "other_weights" not in scoring_toys.metrics_in(out)[1]
    other = {**toy_extractor().about, "sha256": "f" * 64}
    monkeypatch.setattr(
        extractors,
        "inception",
        lambda path, mode: dataclasses.replace(toy_extractor(f"inception-{mode}"), about=other),
    )
    told = inside(*command).stderr
    assert told.count("inception=toy is not the published pt_inception-2015-12-05") == 1
    noted = scoring_toys.metrics_in(out)[1]["other_weights"]
    assert set(noted) == {"inception-clean", "inception-tf"}
    assert all(f"t2i: {one}." in told for one in noted.values())
