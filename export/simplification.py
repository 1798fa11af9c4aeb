"""What is done to a traced graph before it is written: constants folded, no-ops left out, norms and rotary fused.

torch.onnx does the same by itself with every rule that onnxscript has, most of them for convolutions and the like.
Looking for those in a decoder takes a third of the trace's time.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewriteRuleSet, onnx_fusions
from onnxscript.rewriter.rules import common as rules

_RULES = (
    *rules.add_0_rule.commute(), *rules.mul_by_1_rule.commute(), rules.sub_0_rule, rules.div_by_1_rule,
    rules.cast_cast_rule, rules.no_op_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
    rules.transpose_transpose_rule, rules.reshape_reshape_rule, rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule, rules.collapse_slice_rule, rules.collapse_slice2_rule,
)  # fmt: skip


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
    onnx_fusions.fuse(model)
