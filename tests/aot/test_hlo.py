"""Counting what programs do, on programs whose counts are known."""

import functools

import jax
import jax.numpy as jnp
import pytest

from t2i_jax.aot import hlo


def _cost(function, *shapes, devices=1):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.cost(jax.jit(function).lower(*arrays).compile().as_text(), devices)


def test_a_product_counts_two_operations_per_multiply_add():
    assert _cost(lambda x, w: x @ w, (64, 32), (32, 48)).flops == 2 * 64 * 32 * 48


def test_a_scanned_layer_counts_as_often_as_it_runs():
    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    assert _cost(layers, (64, 32), (7, 32, 32)).flops == 7 * 2 * 64 * 32 * 32


def test_loops_in_loops_multiply():
    def loops(x, w):
        def inner(i, x):
            return jnp.tanh(x @ w)

        return jax.lax.fori_loop(0, 3, lambda i, x: jax.lax.fori_loop(0, 5, inner, x) + 1, x)

    assert _cost(loops, (64, 32), (32, 32)).flops == 15 * 2 * 64 * 32 * 32


@pytest.mark.parametrize(("padding", "places"), [("VALID", 6 * 6), ("SAME", 8 * 8)])
def test_a_convolution_counts_what_touches_the_image(padding, places):
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding=padding
    )
    counted = _cost(
        lambda x, w: convolve(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (2, 8, 8, 4),
        (3, 3, 4, 16),
    ).flops
    # at an edge one of three taps lies outside
    taps = 9 * places if padding == "VALID" else (3 * 8 - 2) ** 2
    assert counted == 2 * 2 * 4 * 16 * taps


def test_traffic_is_operands_and_results():
    read_and_written = 4 * (512 * 512 + 512 * 512 + 512 * 512)
    assert _cost(lambda x, y: x @ y, (512, 512), (512, 512)).traffic == pytest.approx(
        read_and_written, rel=0.5
    )


def test_of_a_stack_that_is_sliced_only_the_slice_is_read():
    def layers(x, stack):
        return jax.lax.scan(lambda x, w: (x + w, None), x, stack)[0]

    whole = 4 * 16 * 1024
    assert _cost(layers, (1024,), (16, 1024)).traffic < 6 * whole  # not 16 times the stack


_COLLECTIVES = """HloModule m

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]) parameter(0)
  %x = f32[8,128]{1,0} get-tuple-element(%p), index=1
  %sum = f32[8,128]{1,0} all-reduce(%x), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %out = (s32[], f32[8,128]) tuple(%i, %sum)
}

%condition (q: (s32[], f32[8,128])) -> pred[] {
  %q = (s32[], f32[8,128]) parameter(0)
  %i.1 = s32[] get-tuple-element(%q), index=0
  %many = s32[] constant(6)
  ROOT %less = pred[] compare(%i.1, %many), direction=LT
}

ENTRY %main (a: f32[8,128], b: bf16[4,16]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]) tuple(%zero, %a)
  %loop = (s32[], f32[8,128]) while(%start), condition=%condition, body=%body
  %whole = bf16[32,16]{1,0} all-gather(%b), replica_groups=mesh['x'=2,'y'=4] {'x','y'}, dimensions={0}
  %some = bf16[8,16]{1,0} all-gather(%b), replica_groups=mesh['x'=1,'y'=4,'z'=2], device_ids=([2,4]T(1,0)) {'z'}, dimensions={0}
  %moved = bf16[4,16]{1,0} collective-permute(%b), source_target_pairs={{0,1},{1,0}}
  %half = bf16[2,16]{1,0} reduce-scatter(%b), replica_groups={{0,4},{1,5}}, dimensions={0}, to_apply=%add
  ROOT %end = f32[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_collectives_are_counted_with_their_groups_and_loops():
    found = {one.kind: one for one in hlo.cost(_COLLECTIVES, 8).collectives if one.size != 256}
    assert found["all-reduce"] == hlo.Collective("all-reduce", 4 * 8 * 128, (0, 4), 6)
    assert found["all-reduce"].sent == 6 * 4 * 8 * 128  # twice a half
    assert (
        found["all-gather"].group == tuple(range(8))
        and found["all-gather"].sent == 2 * 32 * 16 * 7 / 8
    )
    assert found["collective-permute"].sent == 2 * 4 * 16
    assert (
        found["reduce-scatter"].group == (0, 4) and found["reduce-scatter"].sent == 2 * 4 * 16 / 2
    )


def test_a_group_of_devices_in_another_order():
    """The eight devices as 2 x 4, then transposed: the first one gathers with the fifth."""
    [some] = [one for one in hlo.cost(_COLLECTIVES, 8).collectives if one.size == 256]
    assert some.group == (0, 4) and some.sent == 128


_SUM_OF_WHICH_A_PART_IS_KEPT = """HloModule m

%all-reduce-scatter.1 (input: bf16[64,16]) -> bf16[8,16] {
  %input = bf16[64,16]{1,0} parameter(0)
  %whole = bf16[64,16]{1,0} all-reduce(%input), replica_groups=[1,8]<=[8], to_apply=%add
  %place = s32[] constant(0)
  ROOT %part = bf16[8,16]{1,0} dynamic-slice(%whole, %place, %place), dynamic_slice_sizes={8,16}
}

ENTRY %main (a: bf16[64,16]) -> bf16[8,16] {
  %a = bf16[64,16]{1,0} parameter(0)
  ROOT %out = bf16[8,16]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_tpus_reduce_scatter_is_a_fusion():
    found = hlo.cost(_SUM_OF_WHICH_A_PART_IS_KEPT, 8).collectives
    assert found == (hlo.Collective("reduce-scatter", 2 * 64 * 16, tuple(range(8)), 1),)


_STARTED = """HloModule m

%gathered (part: bf16[4,128]) -> bf16[32,128] {
  %part = bf16[4,128]{1,0} parameter(0)
  ROOT %all = bf16[32,128]{1,0} all-gather(%part), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%gathered.end (rest: bf16[4,128]) -> bf16[32,128] {
  %rest = bf16[4,128]{1,0} parameter(0)
  ROOT %all.1 = bf16[32,128]{1,0} all-gather(%rest), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (w: f32[3072,2048], a: bf16[4,128], b: bf16[64,16]) -> bf16[32,128] {
  %w = f32[3072,2048]{1,0} parameter(0)
  %a = bf16[4,128]{1,0} parameter(1)
  %b = bf16[64,16]{1,0} parameter(2)
  LINE
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("line", "traffic"),
    [
        # only what is taken, to the chip's own memory and to HBM
        (
            "slice-start = ((f32[3072,2048]{1,0}), f32[768,2048]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) "
            "slice-start(%w), slice={[0:768], [0:2048]}",
            4 * 768 * 2048,
        ),
        ("taken = f32[768,2048]{1,0} slice(%w), slice={[0:768], [0:2048]}", 2 * 4 * 768 * 2048),
        # read and written
        (
            "copied = (f32[3072,2048]{1,0}, f32[3072,2048]{1,0}, u32[]) copy-start(%w)",
            2 * 4 * 3072 * 2048,
        ),
        # a part read, the whole written
        (
            "all = (bf16[4,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%a), dimensions={0}",
            2 * (4 + 32) * 128,
        ),
    ],
)
def test_what_is_begun_moves_what_it_gives_and_no_more(line, traffic):
    """The line of a start names its operands too, and what it needs until it is done."""
    assert hlo.cost(_STARTED.replace("LINE", f"%{line}"), 8).traffic == traffic


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        (
            "all = (bf16[4,128]{1,0}, bf16[32,128]{1,0}) all-gather-start(%a), dimensions={0}",
            "all-gather",
            2 * 32 * 128,
        ),
        (
            "both = ((bf16[4,128]{1,0}, bf16[64,16]{1,0}), (bf16[32,128]{1,0}, "
            "bf16[512,16]{1,0})) all-gather-start(%a, %b), dimensions={0}",
            "all-gather",
            2 * (32 * 128 + 512 * 16),
        ),
        (
            "half = ((bf16[64,16]{1,0}), bf16[8,16]{1,0}, s32[]) reduce-scatter-start(%b), "
            "dimensions={0}, to_apply=%add",
            "reduce-scatter",
            2 * 64 * 16,
        ),
        (
            "sum = bf16[64,16]{1,0} all-reduce-start(%b), to_apply=%add",
            "all-reduce",
            2 * 64 * 16,
        ),
        (
            "moved = (bf16[64,16]{1,0}, bf16[64,16]{1,0}, u32[], u32[]) "
            "collective-permute-start(%b), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            2 * 64 * 16,
        ),
        # within a fusion, and in two pieces of one channel
        ("all.2 = bf16[32,128]{1,0} fusion(%a), calls=%gathered", "all-gather", 2 * 32 * 128),
        (
            "all.2 = bf16[32,128]{1,0} fusion(%a), calls=%gathered\n"
            "  %all.3 = bf16[32,128]{1,0} fusion(%a), calls=%gathered.end",
            "all-gather",
            2 * 32 * 128,
        ),
    ],
)
def test_a_collective_is_counted_however_it_is_written(line, kind, size):
    [found] = hlo.cost(_STARTED.replace("LINE", f"%{line}"), 8).collectives
    assert (found.kind, found.size, found.times) == (kind, size, 1)


_NESTED = """HloModule m

%slice.1 (whole: f32[16,1024], at: s32[]) -> f32[1,1024] {
  %whole = f32[16,1024]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %nought = s32[] constant(0)
  ROOT %part = f32[1,1024]{1,0} dynamic-slice(%whole, %at, %nought), dynamic_slice_sizes={1,1024}
}

%outer (stack: f32[16,1024], i: s32[], row: f32[1,1024]) -> f32[16,1024] {
  %stack = f32[16,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,1024]{1,0} parameter(2)
  %old = f32[1,1024]{1,0} fusion(%stack, %i), kind=kLoop, calls=%slice.1
  %new = f32[1,1024]{1,0} add(%old, %row)
  %zero = s32[] constant(0)
  ROOT %put = f32[16,1024]{1,0} dynamic-update-slice(%stack, %new, %i, %zero)
}

ENTRY %main (a: f32[16,1024], b: s32[], c: f32[1,1024]) -> f32[16,1024] {
  %a = f32[16,1024]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[1,1024]{1,0} parameter(2)
  ROOT %out = f32[16,1024]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%outer
}
"""


def test_a_slice_that_is_taken_deep_in_a_fusion_and_put_back_is_all_that_moves():
    # the old row, the one that is added, the new one, the place
    assert hlo.cost(_NESTED, 1).traffic == 3 * 4 * 1024 + 4


def test_every_branch_of_a_condition_is_counted():
    def either(flag, x, w):
        return jax.lax.cond(flag[0] > 0, lambda: jnp.tanh(x @ w), lambda: x @ w @ w)

    assert _cost(either, (1,), (64, 32), (32, 32)).flops == 3 * 2 * 64 * 32 * 32


_KERNELS = """HloModule m

ENTRY %main (q: bf16[2,4,1024,64], k: bf16[2,4,1024,64], t: bf16[2,4,128,64], i: s32[1024,128], s: s32[2,1024,128]) -> bf16[2,4,1024,64] {
  %q = bf16[2,4,1024,64]{3,2,1,0} parameter(0)
  %k = bf16[2,4,1024,64]{3,2,1,0} parameter(1)
  %t = bf16[2,4,128,64]{3,2,1,0} parameter(2)
  %i = s32[1024,128]{1,0} parameter(3)
  %s = s32[2,1024,128]{2,1,0} parameter(4)
  %splash_mha_fwd_residuals.1 = bf16[2,4,1024,64]{3,2,1,0} custom-call(%q, %k, %k, %i), custom_call_target="tpu_custom_call"
  ROOT %splash_mha_dkv_segmented_no_residuals.1 = bf16[2,4,1024,64]{3,2,1,0} custom-call(%q, %t, %t, %s), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501


def test_attention_kernels_count_the_pairs_that_are_seen():
    """Two products of half of 1024 x 1024 pairs, and four of 1024 x 128, with segments."""
    pairs = 2 * (1024 * 1024 / 2) + 4 * (1024 * 128)
    assert hlo.cost(_KERNELS, 1).flops == 2 * 2 * 4 * 64 * pairs
