"""Compiled programs read: every collective is found, counted through its loops, and sized."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from train.aot.compiled import Collective, Traffic, collectives, memory, summarise

# Cut out of what XLA:TPU made of a scan over 4 groups, in which 3 solver steps run: names, shapes
# and layouts as they were, attributes that play no part left out.
FROM_A_TPU = """HloModule jit_train, is_scheduled=true, num_partitions=16

%add.2.clone (x.4: bf16[], y.5: bf16[]) -> bf16[] {
  %y.5 = bf16[]{:T(256)} parameter(1)
  %x.4 = bf16[]{:T(256)} parameter(0)
  ROOT %add.112 = bf16[]{:T(256)} add(%x.4, %y.5)
}

%all-reduce-scatter.1.clone.1 (input.11: bf16[512,2048]) -> bf16[64,2048] {
  %input.11 = bf16[512,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.30 = bf16[512,2048]{1,0:T(8,128)(2,1)} all-reduce(%input.11), channel_id=22, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, use_global_device_ids=true, to_apply=%add.2.clone
  %multiply.30 = u32[]{:T(128)} constant(64)
  %constant.391 = u32[] constant(0)
  ROOT %dynamic-slice.69 = bf16[64,2048]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.30, %multiply.30, %constant.391), dynamic_slice_sizes={64,2048}
}

%fused_computation.153 (param_0.446: bf16[2048,64]) -> (bf16[2048,64], bf16[2048,512], s32[2], u32[]) {
  %param_0.446 = bf16[2048,64]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.71 = bf16[2048,512]{0,1:T(8,128)(2,1)} all-gather(%param_0.446), channel_id=14, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %custom-call.11 = (bf16[2048,64]{0,1:T(8,128)(2,1)S(1)}, bf16[2048,512]{0,1:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) custom-call(%all-gather.71), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.251 (param_0.450: bf16[2048,64], param_10.3: bf16[4,128,512]) -> (bf16[4,128,512], bf16[2048,512]) {
  %param_10.3 = bf16[4,128,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %param_0.450 = bf16[2048,64]{0,1:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.73 = bf16[2048,512]{0,1:T(8,128)(2,1)S(1)} all-gather(%param_0.450), channel_id=14, dimensions={1}, frontend_attributes={chain_id="0"}
  ROOT %tuple.144 = (bf16[4,128,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2048,512]{0,1:T(8,128)(2,1)S(1)}) tuple(%param_10.3, %all-gather.73)
}

%step.body (wide.param.5: (s32[], bf16[512,2048], bf16[2048,64])) -> (s32[], bf16[512,2048], bf16[2048,64]) {
  %wide.param.5 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[2048,64]{0,1:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%wide.param.5), index=0
  %get-tuple-element.2 = bf16[512,2048]{1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.5), index=1
  %get-tuple-element.798 = bf16[2048,64]{0,1:T(8,128)(2,1)} get-tuple-element(%wide.param.5), index=2
  %async-collective-start = (bf16[2048,64]{0,1:T(8,128)(2,1)S(1)}, bf16[2048,512]{0,1:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%get-tuple-element.798), kind=kCustom, calls=%fused_computation.153
  %fusion.251 = (bf16[4,128,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2048,512]{0,1:T(8,128)(2,1)S(1)}) fusion(%get-tuple-element.798, %get-tuple-element.2), kind=kOutput, calls=%async_collective_fusion.251
  %fusion.237 = bf16[64,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.2), kind=kCustom, calls=%all-reduce-scatter.1.clone.1
  ROOT %tuple.1 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}) tuple(%get-tuple-element.1, %get-tuple-element.2, %get-tuple-element.798)
}

%step.cond (wide.param.1: (s32[], bf16[512,2048], bf16[2048,64])) -> pred[] {
  %constant.186.clone.1 = s32[]{:T(128)} constant(3)
  %wide.param.1 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.665 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  ROOT %lt.23 = pred[]{:T(512)} compare(%get-tuple-element.665, %constant.186.clone.1), direction=LT, metadata={op_name="jit(train)/jvp()/while/body/closed_call/while/cond/lt"}
}

%group.body (wide.param.6: (s32[], bf16[512,2048], bf16[2048,64], s32[])) -> (s32[], bf16[512,2048], bf16[2048,64], s32[]) {
  %wide.param.6 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.3 = bf16[512,2048]{1,0:T(8,128)(2,1)} get-tuple-element(%wide.param.6), index=1
  %get-tuple-element.4 = bf16[2048,64]{0,1:T(8,128)(2,1)} get-tuple-element(%wide.param.6), index=2
  %constant.5 = s32[]{:T(128)} constant(0)
  %copy.6 = s32[]{:T(128)} copy(%constant.5)
  %tuple.160 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}) tuple(%copy.6, %get-tuple-element.3, %get-tuple-element.4)
  %while.130 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}) while(%tuple.160), condition=%step.cond, body=%step.body, metadata={op_name="jit(train)/jvp()/while/body/closed_call/while" stack_frame_id=17}
  %all-reduce.5 = (bf16[512,2048]{1,0:T(8,128)(2,1)S(1)}, bf16[2048,64]{0,1:T(8,128)(2,1)S(1)}) all-reduce(%get-tuple-element.3, %get-tuple-element.4), channel_id=5, to_apply=%add.2.clone
  %after-all.4 = token[] after-all()
  %send.4 = (bf16[2048,64]{0,1:T(8,128)(2,1)}, u32[], token[]) send(%get-tuple-element.4, %after-all.4), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:63}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.4 = token[] send-done(%send.4), channel_id=2, is_host_transfer=true
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%constant.5, %get-tuple-element.3, %get-tuple-element.4, %constant.5)
}

%group.cond (wide.param.3: (s32[], bf16[512,2048], bf16[2048,64], s32[])) -> pred[] {
  %wide.param.3 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.758 = s32[]{:T(128)} get-tuple-element(%wide.param.3), index=0
  %get-tuple-element.759 = s32[]{:T(128)} get-tuple-element(%wide.param.3), index=3
  ROOT %lt.26 = pred[]{:T(512)} compare(%get-tuple-element.758, %get-tuple-element.759), direction=LT
}

ENTRY %main.7 (param.10: bf16[512,2048], param.12: bf16[2048,64]) -> bf16[512,2048] {
  %param.10 = bf16[512,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %param.12 = bf16[2048,64]{0,1:T(8,128)(2,1)} parameter(1)
  %constant.8 = s32[]{:T(128)} constant(1)
  %constant.9 = s32[]{:T(128)} constant(5)
  %tuple.170 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}, s32[]{:T(128)}) tuple(%constant.8, %param.10, %param.12, %constant.9)
  %while.126 = (s32[]{:T(128)}, bf16[512,2048]{1,0:T(8,128)(2,1)}, bf16[2048,64]{0,1:T(8,128)(2,1)}, s32[]{:T(128)}) while(%tuple.170), condition=%group.cond, body=%group.body, metadata={op_name="jit(train)/jvp()/while" stack_frame_id=13}
  %all-gather-start.1 = (bf16[2048,64]{0,1:T(8,128)(2,1)}, bf16[2048,512]{0,1:T(8,128)(2,1)}) all-gather-start(%param.12), channel_id=9, dimensions={1}
  %all-gather-done.1 = bf16[2048,512]{0,1:T(8,128)(2,1)} all-gather-done(%all-gather-start.1)
  ROOT %get-tuple-element.9 = bf16[512,2048]{1,0:T(8,128)(2,1)} get-tuple-element(%while.126), index=1
}
"""  # noqa: E501
MIB = 2**20

# A program of 8 CPU devices: a scan of 5 around a scan of 3, and a loop of unknown length.
ON_CPUS = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

def outer(x, _):
    x, _ = jax.lax.scan(lambda x, _: (jax.lax.psum(x, "d") / 8, None), x, None, length=3)
    y = jax.lax.all_gather(x, "d").sum(0)
    z = jax.lax.psum_scatter(jnp.tile(y, 8), "d", tiled=True)
    return x + z + jax.lax.ppermute(y, "d", [(i, (i + 1) % 8) for i in range(8)]), None

def f(x):
    x, _ = jax.lax.scan(outer, x, None, length=5)
    return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: jax.lax.pmax(x, "d"), x)

mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
f = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False))
print(f.lower(jax.ShapeDtypeStruct((32,), jnp.float32)).compile().as_text())
"""


@pytest.fixture(scope="module")
def on_cpus():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-c", ON_CPUS]
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_program_of_a_tpu():
    """Once each: the asynchronous gather, the fused reduce-scatter, the send to the next slice."""
    found = collectives(FROM_A_TPU)
    assert found == [
        Collective("all-gather", 2 * MIB, count=12, depth=2),
        Collective("reduce-scatter", 2 * MIB, count=12, depth=2),
        Collective("all-reduce", 2 * MIB + MIB // 4, count=4, depth=1),
        Collective("all-reduce between slices", MIB // 4, count=4, depth=1),
        Collective("all-gather", 2 * MIB, count=1, depth=0),
    ]


def test_a_loop_that_is_gone_leaves_its_place():
    """A scan of one step is no loop any more; what was inside it stays the solver's loop."""
    text = FROM_A_TPU.replace("while/body/closed_call/while", "while/body/call/while/body/x/while")
    assert {one.depth for one in collectives(text) if one.count == 12} == {3}


def test_a_loop_of_the_compiler_is_no_place_of_its_own():
    text = FROM_A_TPU.replace("closed_call/while", "closed_call/dot_general")
    assert [(one.depth, one.count) for one in collectives(text)][:2] == [(1, 12), (1, 12)]


def test_two_asynchronous_collectives_are_two():
    """Those of different channels, in the same loop."""
    text = FROM_A_TPU.replace(
        "all-gather(%param_0.450), channel_id=14", "all-gather(%param_0.450), channel_id=20"
    )
    gathers = [one for one in collectives(text) if one.kind == "all-gather" and one.depth == 2]
    assert len(gathers) == 2


def test_the_same_chain_in_another_loop_is_another():
    loop = re.search(r"  %while.126 = .*\n", FROM_A_TPU)[0]
    text = FROM_A_TPU.replace(loop, loop + loop.replace("%while.126", "%while.127"))
    assert len(collectives(text)) == 2 * len(collectives(FROM_A_TPU)) - 1


def test_a_fused_condition():
    """As XLA writes it for CPUs."""
    compare = "compare(%get-tuple-element.665, %constant.186.clone.1), direction=LT"
    fused = """%wrapped (param_1.6: s32[], param_0.7: s32[]) -> pred[] {
  %param_1.6 = s32[] parameter(1)
  %param_0.7 = s32[] parameter(0)
  ROOT %lt.6 = pred[] compare(%param_0.7, %param_1.6), direction=LT
}

ENTRY"""
    call = "fusion(%get-tuple-element.665, %constant.186.clone.1), kind=kLoop, calls=%wrapped"
    text = FROM_A_TPU.replace(compare, call).replace("ENTRY", fused)
    assert collectives(text) == collectives(FROM_A_TPU)


@pytest.mark.parametrize("noted", [True, False])
def test_a_program_of_eight_cpus(on_cpus, noted):
    """As counted by hand, by XLA's note of the trip counts, and by the loops' conditions."""
    assert on_cpus.count('"known_trip_count"') == 2
    text = on_cpus if noted else on_cpus.replace('"known_trip_count"', '"unknown"')
    vector = 4 * 4  # bytes: a device has 4 of the 32 numbers
    assert sorted(collectives(text), key=lambda one: (one.depth, one.kind, one.exact)) == [
        Collective("all-gather", 8 * vector, count=5, depth=1),
        Collective("all-reduce", vector, count=1, depth=1, exact=False),
        Collective("collective-permute", vector, count=5, depth=1),
        Collective("reduce-scatter", 8 * vector, count=5, depth=1),
        Collective("all-reduce", vector, count=15, depth=2),
    ]


def test_a_condition_that_jax_does_not_write_is_unknown(on_cpus):
    text = on_cpus.replace('"known_trip_count"', '"unknown"').replace(
        "direction=LT", "direction=LE"
    )
    assert {one.exact for one in collectives(text)} == {False}


def test_a_conditional_counts_its_most_expensive_branch():
    text = re.sub(r"while\(%tuple.160\), condition=%step.cond, body=%step.body", "CALL", FROM_A_TPU)
    call = "conditional(%copy.6, %tuple.160, %tuple.160), branch_computations={%step.body, %cheap}"
    cheap = "%cheap (x: s32[]) -> s32[] {\n  ROOT %x = s32[] parameter(0)\n}\n\nENTRY"
    text = text.replace("CALL", call).replace("ENTRY", cheap)
    assert [one.count for one in collectives(text) if one.kind == "reduce-scatter"] == [4]


def test_summary():
    found = [
        Collective("all-reduce", 10, count=3, depth=1),
        Collective("all-gather", 5, count=2, depth=1),
        Collective("all-reduce", 1, count=4, depth=1, exact=False),
        Collective("all-reduce", 7, count=1, depth=0),
    ]
    assert summarise(found) == [
        Traffic("all-reduce", depth=0, count=1, bytes=7, exact=True),
        Traffic("all-gather", depth=1, count=2, bytes=10, exact=True),
        Traffic("all-reduce", depth=1, count=7, bytes=34, exact=False),
    ]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule nothing")


def test_memory():
    """An output counts, unless it takes its argument's place."""
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    kept = memory(jax.jit(lambda x: x + 1).lower(x).compile())
    assert (kept.arguments, kept.temporary) == (256 * 1024, 256 * 1024)
    given = memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
    assert (given.arguments, given.temporary) == (256 * 1024, 0)
    assert kept.total == kept.arguments + kept.temporary + kept.program
