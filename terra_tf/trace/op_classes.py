"""What is known of op types: how they touch variables, whether they can fail, who may run them.

Everything not listed is treated as the worst it could be: a stateful op runs imperatively, an
op with a resource input too, and an op that is not known to be safe counts as fallible.
"""

from __future__ import annotations

import functools
from typing import Any

from terra_tf._tf_internals import dtypes, op_def_registry
from terra_tf.errors import ImperativeReason

READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"})
DENSE_WRITES = frozenset({"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"})
_SCATTERS = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Update")
INDEXED_WRITES = frozenset(f"ResourceScatter{kind}" for kind in _SCATTERS) | frozenset(
    f"ResourceScatterNd{kind}" for kind in ("Add", "Sub", "Min", "Max", "Update")
)
IN_PLACE_WRITES = INDEXED_WRITES | {"ResourceStridedSliceAssign"}
VARIABLE_OPS = READS | DENSE_WRITES | IN_PLACE_WRITES

# Seeded ops and the stateless ops that draw the same bits from (key, counter).
STATELESS_RANDOM = {
    "RandomUniform": "StatelessRandomUniformV2",
    "RandomStandardNormal": "StatelessRandomNormalV2",
    "TruncatedNormal": "StatelessTruncatedNormalV2",
    "RandomUniformInt": "StatelessRandomUniformIntV2",
}

# Stateful by definition, but without an effect that anybody could see twice.
SAFE_STATEFUL = frozenset(
    {"CheckNumerics", "CheckNumericsV2", "Assert", "StatelessRandomGetAlg", "EnsureShape"}
)

# An attribute of theirs is a text for people.
SAYS_A_TEXT = frozenset({"StringFormat", "CheckNumerics", "CheckNumericsV2"})

ASK_FOR_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
DEPENDS_ON_SHAPE_ONLY = ASK_FOR_SHAPES | {"VariableShape"}

# No state, says TensorFlow; but what is in a file changes, and Python changes it.
READS_FILES = frozenset({"ReadFile", "MatchingFiles", "GenerateVocabRemapping"})

# What gradients of functions need of the lists that a loop keeps: variants among others.
TAKES_VARIANTS = frozenset({"ZerosLike", "AddN"})

_ITERATORS = ("Iterator", "Dataset", "Optional")
_UNSUPPORTED_DTYPES = frozenset(
    {dtypes.variant.as_datatype_enum, dtypes.resource.as_datatype_enum}
)

# Cannot fail for any value of inputs that have the traced types and shapes.
_INFALLIBLE = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 Angle ApproximateEqual Asin Asinh Atan Atan2 Atanh AvgPool
    BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd BiasAddGrad Cast Ceil ClipByValue Complex
    ComplexAbs Conj Conv2D Conv3D Cos Cosh Cross DepthwiseConv2dNative Diag DiagPart Digamma
    DivNoNan Einsum Elu EluGrad Equal Erf Erfc Erfinv Exp Expm1 Floor FusedBatchNorm
    FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2
    FusedBatchNormV3 Greater GreaterEqual Identity IdentityN Igamma Imag Inv InvGrad IsFinite
    IsInf IsNan L2Loss LRN LRNGrad LeakyRelu LeakyReluGrad Less LessEqual Lgamma Log Log1p
    LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul MatrixDiag MatrixDiagPart MaxPool
    MaxPoolGrad Maximum Minimum Mul MulNoNan Ndtri Neg NextAfter NotEqual OnesLike
    PreventGradient Rank Real RealDiv Reciprocal ReciprocalGrad Relu Relu6 Relu6Grad ReluGrad
    Rint Round Rsqrt RsqrtGrad Select SelectV2 Selu SeluGrad Shape ShapeN Sigmoid SigmoidGrad
    Sign Sin Sinh Size Snapshot Softmax SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad
    Softsign SoftsignGrad Sqrt SqrtGrad Square SquaredDifference Squeeze StopGradient Sub Tan
    Tanh TanhGrad Where Xdivy Xlog1py Xlogy ZerosLike Pack Unpack Const ReadVariableOp
    AssignVariableOp AssignAddVariableOp AssignSubVariableOp VariableShape
    StatelessRandomGetKeyCounter StatelessRandomGetAlg Bitcast Invert BitwiseAnd BitwiseOr
    BitwiseXor LeftShift RightShift ExtractImagePatches ResizeNearestNeighborGrad SpaceToDepth
    DepthToSpace MaxPoolGradGrad ResizeBilinearGrad ResizeBicubicGrad AdjustContrastv2 AdjustHue
    AdjustSaturation RGBToHSV HSVToRGB BesselI0 BesselI0e BesselI1 BesselI1e Betainc Igammac
    IgammaGradA Polygamma Zeta InTopKV2 EnsureShape MaxPool3D MaxPool3DGrad AvgPool3D
    """.split()  # noqa: SIM905
)

# Cannot fail when these inputs are constants, for the traced run has succeeded with them.
_INFALLIBLE_WITH_CONSTANTS = {
    "ArgMax": (1,), "ArgMin": (1,), "BroadcastTo": (1,), "Fill": (0,), "Max": (1,),
    "Mean": (1,), "Min": (1,), "MirrorPad": (1,), "MirrorPadGrad": (1,), "OneHot": (1,),
    "Pad": (1,), "PadV2": (1,), "Prod": (1,), "Range": (0, 1, 2), "Reshape": (1,),
    "ReverseV2": (1,), "Roll": (1, 2), "Slice": (1, 2), "Split": (0,), "SplitV": (1, 2),
    "StridedSlice": (1, 2, 3), "StridedSliceGrad": (0, 1, 2, 3), "Sum": (1,), "Tile": (1,),
    "TopKV2": (1,), "Transpose": (1,), "EuclideanNorm": (1,),
    "GatherV2": (1, 2), "ConcatV2": (-1,), "Bucketize": (),
    "UnsortedSegmentSum": (1, 2), "LinSpace": (0, 1, 2), "MatrixBandPart": (1, 2),
    "MatrixDiagV3": (1, 2, 3), "MatrixDiagPartV3": (1,), "Cumsum": (1,), "Cumprod": (1,),
    "All": (1,), "Any": (1,), "ExpandDims": (1,), "ResizeBilinear": (1,),
    "ResizeNearestNeighbor": (1,), "ResizeNearestNeighborGrad": (1,), "RandomUniform": (0,),
    "RandomStandardNormal": (0,), "TruncatedNormal": (0,), "RandomUniformInt": (0, 1, 2),
    "StatelessRandomUniformV2": (0, 3), "StatelessRandomNormalV2": (0, 3),
    "StatelessTruncatedNormalV2": (0, 3), "StatelessRandomUniformIntV2": (0, 3, 4, 5),
    "BroadcastGradientArgs": (0, 1), "Conv2DBackpropInput": (0,), "Conv2DBackpropFilter": (1,),
    "AvgPoolGrad": (0,), "DepthwiseConv2dNativeBackpropFilter": (1,),
    "DepthwiseConv2dNativeBackpropInput": (0,), "SpaceToBatchND": (1, 2), "BatchToSpaceND": (1, 2),
    "Conv3DBackpropInputV2": (0,), "Conv3DBackpropFilterV2": (1,), "AvgPool3DGrad": (0,),
    "CumulativeLogsumexp": (1,), "ResizeBicubic": (1,), "GatherNd": (1,), "ScatterNd": (0, 2),
    "TensorScatterAdd": (1,), "TensorScatterSub": (1,), "TensorScatterUpdate": (1,),
}  # fmt: skip

# Integer division by zero is an error; float division is not.
INTEGER_DIVISIONS = frozenset(
    {"Div", "FloorDiv", "FloorMod", "TruncateDiv", "TruncateMod", "Mod"}
)
_FLOAT_ONLY = INTEGER_DIVISIONS | {"Pow"}


@functools.cache
def _definition(op_type: str) -> Any:
    return op_def_registry.get(op_type)


@functools.lru_cache(maxsize=4096)
def imperative_reason(
    op_type: str, input_dtypes: tuple[int, ...], output_dtypes: tuple[int, ...]
) -> ImperativeReason | None:
    """Returns why an op has to run on the spot, or None if it can be delegated."""
    definition = _definition(op_type)
    if definition is None:
        return ImperativeReason.NO_OP_DEFINITION
    if op_type in VARIABLE_OPS:
        return None
    if "PyFunc" in op_type:
        return ImperativeReason.PYTHON_CALLBACK
    if any(word in op_type for word in _ITERATORS):
        return ImperativeReason.DATASET_ITERATOR
    if any(dtype in _UNSUPPORTED_DTYPES for dtype in input_dtypes + output_dtypes):
        return ImperativeReason.RESOURCE_OP
    if op_type in STATELESS_RANDOM or op_type in SAFE_STATEFUL:
        return None
    if definition.is_stateful or op_type in READS_FILES:
        return ImperativeReason.STATEFUL_OP
    if any(attr.type == "func" for attr in definition.attr):
        return ImperativeReason.STATEFUL_OP
    return None


def is_fallible(
    op_type: str,
    input_dtypes: tuple[int, ...],
    constants: frozenset[int],
    has_static_shapes: bool = True,
) -> bool:
    """Says whether the op may raise for other values of the same types and shapes.

    Args:
      op_type: The op.
      input_dtypes: DataType enums, flat.
      constants: The flat input positions that are constants of the graph.
      has_static_shapes: Whether the inputs' shapes are the same in every step; if not, they
        may not fit.
    """
    if not has_static_shapes:
        return True
    if op_type in _FLOAT_ONLY:
        return not dtypes.as_dtype(input_dtypes[0]).is_floating
    if op_type in _INFALLIBLE:
        return False
    needed = _INFALLIBLE_WITH_CONSTANTS.get(op_type)
    if needed is None:
        return True
    return not all((i % len(input_dtypes)) in constants for i in needed)
