"""What is read from XLA's text of a program; compiling one for a GPU needs NVIDIA's packages."""

from benchmarks.ahead_of_time import Launch, computations, launches, loop_body

HLO = """
HloModule jit_step, is_scheduled=true

%fused (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %double = f32[4,8]{1,0} add(%p, %p)
}

%graph (p.1: f32[4,8], p.2: f32[8]) -> f32[4,8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %p.2 = f32[8]{0} parameter(1)
  %fusion.1 = f32[4,8]{1,0} fusion(%p.1), kind=kLoop, calls=%fused
  %call.2 = (f32[4,8], u8[64]) custom-call(%fusion.1, %p.2), custom_call_target="__cudnn$conv"
  ROOT %get = f32[4,8]{1,0} get-tuple-element(%call.2), index=0
}

%body (state: (s32[], f32[4,8], f32[8])) -> (s32[], f32[4,8], f32[8]) {
  %state = (s32[], f32[4,8]{1,0}, f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %w = f32[8]{0} get-tuple-element(%state), index=2
  %call = f32[4,8]{1,0} call(%x, %w), to_apply=%graph
  %copy.1 = bf16[8]{0} copy(%w)
  ROOT %tuple = (s32[], f32[4,8]{1,0}, f32[8]{0}) tuple(%i, %call, %w)
}

ENTRY %main (arg: (s32[], f32[4,8], f32[8])) -> (s32[], f32[4,8], f32[8]) {
  %arg = (s32[], f32[4,8]{1,0}, f32[8]{0}) parameter(0)
  ROOT %while = (s32[], f32[4,8]{1,0}, f32[8]{0}) while(%arg), condition=%cond, body=%body
}
"""


def test_launches_of_a_step_are_counted_with_the_bytes_that_they_move():
    found = computations(HLO)
    assert loop_body(found) == "body"
    assert list(launches(found, "body")) == [
        Launch("fusion", "", 4 * 32 * 2),
        # Without cuDNN's workspace.
        Launch("custom-call", "__cudnn$conv", 4 * (32 + 32 + 8)),
        Launch("copy", "", 2 * 8 + 4 * 8),
    ]
