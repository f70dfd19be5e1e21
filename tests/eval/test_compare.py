"""Comparing two results: pairs find what is hidden in two intervals, chance is called chance, and
other protocols are refused.
"""

import numpy as np
import pytest

from t2i_jax.errors import UserError
from t2i_jax.eval.compare import compare, lower_is_better, table
from t2i_jax.eval.intervals import bootstrap, halves
from t2i_jax.eval.protocol import PROTOCOLS


def results(value, stderr=None, sha256="1", prompts="p", **more):
    interval = None if stderr is None else {"stderr": stderr}
    entry = {
        "value": value,
        "interval": interval,
        "extractor": {"sha256": sha256},
        "n_generated": 9,
    }
    return {
        "metrics": {"fid_clean_inception": {**entry, **more}},
        "prompts": {"sha256": prompts},
        "protocol": PROTOCOLS["coco30k"].about(),
    }


def of_images(values):
    return {"clip_score": {(f"prompt {i // 2}", i % 2): v for i, v in enumerate(values)}}


def scored(values):
    mean, interval = float(np.mean(values)), bootstrap(values).about()
    return {"metrics": {"clip_score": {"value": mean, "interval": interval}}}


def test_pairs_find_a_difference_that_two_intervals_hide():
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.normal(0.3, 0.1, 100), 2)  # how hard a prompt is, for both
    a = hard + rng.normal(0, 0.01, 200)
    b = hard + 0.006 + rng.normal(0, 0.01, 200)
    (unpaired,) = compare(scored(a), scored(b))
    (paired,) = compare(scored(a), scored(b), of_images(a), of_images(b))
    assert not unpaired.is_real and paired.is_real and paired.better == "b"
    assert paired.shared == 100 and paired.difference == pytest.approx(np.mean(b - a))
    assert "B is better on 100 shared prompts" in table([paired])


def test_chance_is_real_as_seldom_as_promised():
    rng = np.random.default_rng(1)
    real = []
    for _ in range(150):
        a, b = rng.normal(size=(2, 80))
        (one,) = compare(scored(a), scored(b), of_images(a), of_images(b))
        real.append(one.is_real)
    assert 0.01 <= np.mean(real) <= 0.11


def test_images_of_grids_are_not_paired_with_files_that_may_be_grids():
    values = np.random.default_rng(0).random(40)
    one_each = {"clip_score": {(f"prompt {i}", 0): v for i, v in enumerate(values)}}
    several = of_images(values)
    of_run, whole = {"kind": "generated"}, {"kind": "folder", "path": "x"}
    in_grids = {**scored(values), "images": {**whole, "grid": 4}}
    for images, found in (
        (of_run, one_each), (whole, several), ({**whole, "grid": 1}, one_each),
        ({**whole, "grid": 4}, several),
    ):  # fmt: skip
        compare(in_grids, {**scored(values), "images": images}, several, found)
    with pytest.raises(UserError, match="images.grid=4 in the first and None in the second"):
        compare(in_grids, {**scored(values), "images": whole}, several, one_each)


def test_only_shared_images_count():
    a = of_images(np.zeros(40))
    b = of_images(np.ones(30))
    (one,) = compare(scored(np.zeros(40)), scored(np.ones(30)), a, b)
    assert (one.shared, one.left_out, one.difference) == (15, 10, 1.0)
    with pytest.raises(UserError, match="has 4 prompts that both results hold"):
        compare(scored(np.zeros(40)), scored(np.ones(8)), a, of_images(np.ones(8)))


def test_ids_of_two_files_of_prompts_are_no_pairs():
    def of(count, file, sha256):
        prompts = {"sha256": sha256, "file_sha256": file}
        return {**scored(np.zeros(count)), "prompts": prompts}, of_images(np.zeros(count))

    (whole, values), (some, few) = of(40, "one", "all"), of(30, "one", "first 30")
    assert compare(whole, some, values, few)[0].shared == 15
    (copied, same), (other, others) = of(40, "copy", "all"), of(30, "two", "b")
    assert compare(whole, copied, values, same)[0].shared == 20
    with pytest.raises(UserError, match="prompts.sha256='all' in the first and 'b' in the second"):
        compare(whole, other, values, others)


def test_values_of_one_name_against_two_things_are_no_pairs():
    values, (same, other) = of_images(np.zeros(40)), ("same", "other")
    marks = dict.fromkeys(values["clip_score"], same)
    some = scored(np.zeros(40)), scored(np.zeros(40)), values, values
    for one in (marks, {}):  # results of earlier versions have none
        assert compare(*some, marks=(marks, one))[0].shared == 20
    others = {**marks, ("prompt 3", 1): other}
    with pytest.raises(UserError, match="'prompt 3' is measured against one .*1 of 40 values"):
        compare(*some, marks=(marks, others))


def test_a_distance_is_paired_by_its_halves():
    def spans(values, seed=0):
        one = iter(values)
        return halves(100, 20.0, lambda rows: next(one), len(values), seed=seed).about()

    a = results(20.0) | {}
    b = results(19.5)
    a["metrics"]["fid_clean_inception"]["interval"] = spans([22.0, 25.0, 21.0, 24.0, 23.0])
    b["metrics"]["fid_clean_inception"]["interval"] = spans([21.5, 24.4, 20.5, 23.6, 22.4])
    (one,) = compare(a, b)
    assert one.is_real and one.better == "b" and "halves" in one.interval.method
    # other halves are no pairs
    b["metrics"]["fid_clean_inception"]["interval"] = spans([21.5, 24.4, 20.5, 23.6, 22.4], 1)
    (other,) = compare(a, b)
    assert not other.is_real and "both standard errors" in other.interval.method


def test_without_intervals_nothing_is_claimed():
    (one,) = compare(results(20.0), results(10.0))
    assert one.is_real is None and one.better is None
    assert "no interval" in table([one]) and one.about()["interval"] is None


def test_other_protocols_are_refused_with_the_field():
    same = results(20.0, 0.1)
    with pytest.raises(UserError, match="fid_clean_inception can't be compared: extractor.sha256"):
        compare(same, results(19.0, 0.1, sha256="2"))
    with pytest.raises(UserError, match="n_generated=9 in the first and 8"):
        compare(same, results(19.0, 0.1, n_generated=8))
    with pytest.raises(UserError, match="prompts.sha256='p'"):
        compare(same, results(19.0, 0.1, prompts="q"))
    other = {**same, "protocol": PROTOCOLS["coco30k-gigagan"].about()}
    with pytest.raises(UserError, match="name='coco30k'"):
        compare(same, other)
    with pytest.raises(UserError, match="share no metric: the first has fid_clean_inception"):
        compare(same, scored(np.arange(3.0)))
    # where files lie is no difference
    moved = results(19.0, 0.1, reference={"path": "/b", "sha256": "r"})
    (one,) = compare(results(20.0, 0.1, reference={"path": "/a", "sha256": "r"}), moved)
    assert one.is_real and one.better == "b"


def test_what_is_better():
    lower = ("fid_clean_inception", "kid", "lpips_alex", "fd_dinov2", "cmmd")
    assert all(map(lower_is_better, lower))
    assert not any(
        map(lower_is_better, ("clip_score", "psnr", "precision", "alignment", "fidelity"))
    )
