"""What is done to a traced graph before it is written: constants folded, no-ops left out, norms and rotary fused.

torch.onnx does the same by itself with every rule that onnxscript has, most of them for convolutions and the like.
Looking for those in a decoder takes a third of the trace's time.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, onnx_fusions
from onnxscript.rewriter.rules import common as rules

_RULES = (
    *rules.add_0_rule.commute(), *rules.mul_by_1_rule.commute(), rules.sub_0_rule, rules.div_by_1_rule,
    rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
    rules.transpose_transpose_rule, rules.reshape_reshape_rule, rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule, rules.collapse_slice_rule, rules.collapse_slice2_rule,
)  # fmt: skip


def _turned(op: Any, x: Any, cosine: Any, sine: Any) -> Any:
    return op.RotaryEmbedding(op.Transpose(x, perm=[0, 2, 1, 3]), cosine, sine, _outputs=["turned"])


def _turned_first(op: Any, x: Any, cosine: Any, sine: Any, turned: Any) -> Any:
    heads, size = x.shape[2:]
    flat = op.Reshape(x, op.Constant(value_ints=[1, -1, heads * size]))
    attributes = {name: value for name, value in turned.producer().attributes.items() if name != "num_heads"}
    whole = op.RotaryEmbedding(flat, cosine, sine, num_heads=heads, **attributes)
    return op.Transpose(op.Reshape(whole, op.Constant(value_ints=[1, -1, heads, size])), perm=[0, 2, 1, 3])


def _has_heads(context: Any, x: Any, **_: Any) -> bool:
    return (
        x.shape is not None and len(x.shape) == 4 and x.shape[0] == 1 and all(isinstance(d, int) for d in x.shape[2:])
    )


# Heads are moved in front of the tokens behind the rotation, where `blocks` moves them back, and not before.
_HEADS = RewriteRule(_turned, _turned_first, _has_heads)


def _reshaped_twice(op: Any, x: Any, first: Any, second: Any) -> Any:
    return op.Reshape(op.Reshape(x, first), second, _outputs=["reshaped"])


def _reshaped_once(op: Any, x: Any, second: Any, reshaped: Any, **_: Any) -> Any:
    return op.Reshape(x, second, **reshaped.producer().attributes)


def _keeps_nothing(context: Any, second: Any, reshaped: Any, **_: Any) -> bool:
    """Whether a shape says all itself: a 0 may stand for what the tensor has there."""
    zero = reshaped.producer().attributes.get("allowzero")
    if zero is not None and zero.as_int() == 1:
        return True
    return second.const_value is not None and 0 not in second.const_value.numpy()


_RESHAPES = RewriteRule(_reshaped_twice, _reshaped_once, _keeps_nothing, remove_nodes=False)


def _some_of(function: str) -> RewriteRule:
    """Of some tokens' angles a cosine or sine, not of all tokens' a part: the form in which rotary is fused."""

    def pattern(op: Any, angles: Any, places: Any) -> Any:
        return op.Gather(getattr(op, function)(op.Concat(angles, angles, axis=-1)), places, axis=1)

    def replacement(op: Any, angles: Any, places: Any) -> Any:
        some = op.Gather(angles, places, axis=1)
        return getattr(op, function)(op.Concat(some, some, axis=-1))

    return RewriteRule(pattern, replacement, remove_nodes=False)


_ANGLES = RewriteRuleSet([_some_of("Cos"), _some_of("Sin")])


def simplify(model: Any) -> None:
    """Simplify an `onnx_ir.Model`, in place."""
    passes.InlinePass()(model)
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True)
        RewriteRuleSet(_RULES).apply_to_model(model)
        passes.RemoveUnusedNodesPass()(model)
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)
    _ANGLES.apply_to_model(model)
    passes.CommonSubexpressionEliminationPass()(model)
    onnx_fusions.fuse(model)
    RewriteRuleSet([_HEADS]).apply_to_model(model)
    RewriteRuleSet([*_RULES, _RESHAPES]).apply_to_model(model)
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)
