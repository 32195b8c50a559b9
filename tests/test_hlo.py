import pytest

from cramjax import hlo
from cramjax.hlo import Array, Kernel

# One of everything. Sizes in bytes: bf16[4,8] 64, bf16[8,16] 256, bf16[4,16] 128,
# f32[4,16] 256, f32[100,16] 6400, f32[10] 40.
TEXT = """HloModule jit_step, is_scheduled=true, entry_computation_layout={...}

%fused_product (a: bf16[4,8], b: bf16[8,16]) -> f32[4,16] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,16]{1,0} parameter(1)
  %dot.1 = bf16[4,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/jvp(MaskedLM)/x/dot_general"}
  ROOT %wide = f32[4,16]{1,0} convert(%dot.1), metadata={op_name="jit(step)/late"}
}

%fused_pick (t: f32[100,16], i: s32[4]) -> (f32[4,16], f32[2,16]) {
  %t = f32[100,16]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %same = f32[100,16]{1,0} bitcast(%t)
  %gather.1 = f32[4,16]{1,0} gather(%same, %i), slice_sizes={1,16}, metadata={op_name="jit(step)/take/gather"}
  %slice.1 = f32[2,16]{1,0} slice(%t), slice={[0:2], [0:16]}, metadata={op_name="jit(step)/take/gather"}
  ROOT %both = (f32[4,16]{1,0}, f32[2,16]{1,0}) tuple(%gather.1, %slice.1), metadata={op_name="jit(step)/other/tuple"}
}

%nameless (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  ROOT %negate.1 = f32[10]{0} negate(%x)
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %v = f32[10]{0} get-tuple-element(%s), index=1
  %n = s32[] get-tuple-element(%s), index=0
  %loop.1 = f32[10]{0} fusion(%v), kind=kLoop, calls=%nameless, metadata={op_name="jit(step)/while/body/neg"}
  ROOT %next = (s32[], f32[10]{0}) tuple(%n, %loop.1)
}

%little (p: f32[10]) -> f32[10] {
  %p = f32[10]{0} parameter(0)
  ROOT %copy.1 = f32[10]{0} copy(%p), metadata={op_name="jit(step)/cond/little"}
}

%much (q: f32[10]) -> f32[10] {
  %q = f32[10]{0} parameter(0)
  %copy.2 = f32[10]{0} copy(%q), metadata={op_name="jit(step)/cond/much"}
  ROOT %copy.3 = f32[10]{0} copy(%copy.2), metadata={op_name="jit(step)/cond/much"}
}

ENTRY %main (a.1: bf16[4,8], b.1: bf16[8,16], t.1: f32[100,16], i.1: s32[4], x.1: f32[10]) -> f32[10] {
  %a.1 = bf16[4,8]{1,0} parameter(0), metadata={op_name="state.a"}
  %b.1 = bf16[8,16]{1,0} parameter(1)
  %t.1 = f32[100,16]{1,0} parameter(2)
  %i.1 = s32[4]{0} parameter(3)
  %x.1 = f32[10]{0} parameter(4)
  %product = f32[4,16]{1,0} fusion(%a.1, %b.1), kind=kCustom, calls=%fused_product, metadata={op_name="jit(step)/jvp(MaskedLM)/y/dot_general" stack_frame_id=7}
  %pick = (f32[4,16]{1,0}, /*index=1*/f32[2,16]{1,0}) fusion(%t.1, /*index=1*/%i.1), kind=kLoop, calls=%fused_pick
  %picked = f32[4,16]{1,0} get-tuple-element(%pick), index=0
  %library = (f32[4,4]{1,0}, s8[32]{0}) custom-call(%picked, %product), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/z/dot_general"}, backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}
  %initial = (s32[], f32[10]{0}) tuple(%i.1, %x.1)
  %while.1 = (s32[], f32[10]{0}) while(%initial), condition=%unused, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %y.1 = f32[10]{0} get-tuple-element(%while.1), index=1, metadata={op_name="jit(step)/while"}
  %cond.1 = f32[10]{0} conditional(%i.1, %y.1, %y.1), branch_computations={%little, %much}
  %call.1 = f32[10]{0} call(%cond.1), to_apply=%little
  ROOT %last = f32[10]{0} fusion(%y.1), kind=kLoop, calls=%nameless
}
"""  # noqa: E501


def test_every_kernel_by_hand():
    product, pick, library, loop, much_1, much_2, little, last = hlo.kernels(TEXT)
    # Reads 64 + 256, writes 256; 4 x 16 sums of 8 products.
    flops = 2 * 4 * 16 * 8
    name = "jit(step)/jvp(MaskedLM)/y/dot_general"
    assert product == Kernel(name, 64 + 256 + 256, flops, 0)
    # Of the table only what is picked is read, 4 and 2 rows, and the 4 indices; its
    # name is the commonest inside.
    rows = 4 * 64 + 2 * 64
    assert pick == Kernel("jit(step)/take/gather", rows + 16 + rows, 0, 0)
    # Two float32 matrices of 4 x 16, summed over 16, to 4 x 4 and 32 bytes of scratch.
    flops = 2 * 4 * 4 * 16
    name = "jit(step)/z/dot_general"
    assert library == Kernel(name, 256 + 256 + 64 + 32, flops, flops)
    assert loop == Kernel("jit(step)/while/body/neg", 3 * 80, 0, 0)
    # Of the branches the one with two copies; the other is called once, by itself.
    assert much_1 == much_2 == Kernel("jit(step)/cond/much", 80, 0, 0)
    assert little == Kernel("jit(step)/cond/little", 80, 0, 0)
    # Nothing in it has a name: it gets that of what it reads.
    assert last == Kernel("jit(step)/while", 80, 0, 0)


def test_a_gather_that_is_not_all_there_is_reads_the_whole_table():
    also = "%sum = f32[100,16]{1,0} add(%t, %t)\n  %slice.1 ="
    assert hlo.kernels(TEXT.replace("%slice.1 =", also))[1].bytes == 6400 + 16 + 6 * 64


def test_more_is_never_picked_than_there_is():
    twice = TEXT.replace("f32[4,16]{1,0} gather", "f32[200,16]{1,0} gather")
    assert hlo.kernels(twice)[1].bytes == 6400 + 16 + 6 * 64


def test_a_loop_without_a_trip_count_is_refused():
    text = TEXT.replace('"known_trip_count":{"n":"3"}', "")
    with pytest.raises(ValueError, match=r"the loop while\.1 runs an unknown"):
        hlo.kernels(text)


@pytest.mark.parametrize(
    ("target", "products"),
    [("__cudnn$fmhaSoftmax", 2), ("__cudnn$fmhaSoftmaxBackward", 5)],
)
def test_attention_by_the_library(target, products):
    line = (
        "  %fmha = (bf16[2,3,5,7]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), "
        f'custom_call_target="{target}", metadata={{op_name="jit(step)/a/b"}}, '
        'backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": '
        '{"element_type": "BF16", "dimensions": ["2", "3", "5", "5"], "layout": '
        '{"dimensions": ["9"]}}}}'
    )
    text = f"""HloModule m
ENTRY %main (q: bf16[2,5,3,7]) -> bf16[2,3,5,7] {{
  %q = bf16[2,5,3,7]{{3,2,1,0}} parameter(0)
{line}
}}"""
    (kernel,) = hlo.kernels(text)
    assert kernel.flops == products * 2 * (2 * 3 * 5 * 5) * 7
    assert kernel.wide_flops == 0
    assert kernel.bytes == 4 * 2 * (2 * 3 * 5 * 7)


def test_sizes_of_types():
    sizes = {"f32": 4, "bf16": 2, "pred": 1, "u8": 1, "s64": 8, "f8e4m3fn": 1, "s4": 1}
    assert {name: Array(name, ()).bytes for name in sizes} == sizes
    assert Array("f32", (3, 5)).bytes == 60
    assert Array("f32", (3, 0)).bytes == 0
