// The ops by which the generated graph talks to the PythonRunner.
//
// Every one but Terra>Handle takes its step as first input (in a loop, with the
// trip: Terra>Trip) and names a channel of that step's mailbox by attribute.
// All are stateful: Grappler must neither merge nor drop them.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace terra {
namespace {

using tensorflow::PartialTensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status FeedShape(InferenceContext* c) {
  PartialTensorShape shape;
  TF_RETURN_IF_ERROR(c->GetAttr("shape", &shape));
  ShapeHandle handle;
  TF_RETURN_IF_ERROR(c->MakeShapeFromPartialTensorShape(shape, &handle));
  c->set_output(0, handle);
  return absl::OkStatus();
}

absl::Status IndexShape(InferenceContext* c) {
  c->set_output(0, c->input(0));
  return absl::OkStatus();
}

REGISTER_OP("Terra>Feed")
    .Input("step: int64")
    .Output("output: dtype")
    .Attr("dtype: type")
    .Attr("shape: shape")
    .Attr("channel: int >= 0")
    .SetIsStateful()
    .SetShapeFn(FeedShape)
    .Doc(R"doc(
Waits for a tensor that the PythonRunner puts into a channel of the step.

step: The step's id, a scalar.
output: The tensor that was put.
shape: The static shape of the tensor; unknown dimensions are allowed.
channel: The channel of the step's mailbox.
)doc");

REGISTER_OP("Terra>Handle")
    .Output("handle: resource")
    .Attr("number: int >= 1")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Gives the handle of a variable that is the same in every step.

handle: The handle, a scalar.
number: By which it is held (kernels/held_handles.h).
)doc");

REGISTER_OP("Terra>ReadVariable")
    .Output("value: dtype")
    .Attr("dtype: type")
    .Attr("number: int >= 1")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::UnknownShape)
    .Doc(R"doc(
Reads a variable that is the same in every step, as `ReadVariableOp` does.

value: The variable's value.
number: By which its handle is held (kernels/held_handles.h).
)doc");

REGISTER_OP("Terra>Fetch")
    .Input("step: int64")
    .Input("input: dtype")
    .Attr("dtype: type")
    .Attr("channel: int >= 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc(R"doc(
Hands a tensor to the PythonRunner through a channel of the step.

step: The step's id, a scalar.
input: The tensor.
channel: The channel of the step's mailbox.
)doc");

REGISTER_OP("Terra>AwaitCommit")
    .Input("step: int64")
    .Attr("channel: int >= 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs)
    .Doc(R"doc(
Waits until the PythonRunner has validated an epoch of the step.

Writes of the epoch run after it, by control dependency. It fails with
CANCELLED when the step diverges first.

step: The step's id, a scalar.
channel: The channel of the step's mailbox.
)doc");

REGISTER_OP("Terra>CaseSelect")
    .Input("step: int64")
    .Output("index: int32")
    .Attr("channel: int >= 0")
    .Attr("num_branches: int >= 1")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Waits until the PythonRunner says which branch of a switch-case it takes.

step: The step's id, a scalar.
index: The branch, a scalar in [0, num_branches).
channel: The channel of the step's mailbox.
num_branches: How many branches there are; another index is an INTERNAL error.
)doc");

REGISTER_OP("Terra>LoopCond")
    .Input("step: int64")
    .Input("trip: int32")
    .Output("goes_on: bool")
    .Attr("channel: int >= 0")
    .Attr("num_trips: int >= 1")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Waits until the PythonRunner says whether it begins another trip of a loop.

After `num_trips` trips there is none; then nobody is asked.

step: The step and the trip (`Terra>Trip`), a scalar.
trip: How many trips there have been, a scalar.
goes_on: Whether there is another trip, a scalar.
channel: The channel of the step's mailbox for the first trip; those of the
  other trips follow it.
num_trips: How many trips there are at the most.
)doc");

REGISTER_OP("Terra>Trip")
    .Input("step: int64")
    .Input("trip: int32")
    .Output("place: int64")
    .Attr("num_trips: int >= 1")
    .SetShapeFn(tensorflow::shape_inference::ScalarShape)
    .Doc(R"doc(
Says which trip of a loop an op belongs to: what it takes for its step.

An op in a loop has a channel for each trip, one after the other: for two loops,
one in the other, those of the inner loop's trips in the first trip of the outer
one come first.

step: The step's id, or the place of the trip of the loop around, a scalar.
trip: The number of the trip, from 0 to num_trips, a scalar.
place: The step and the trip, a scalar.
num_trips: How many trips the loop has at the most.
)doc");

REGISTER_OP("Terra>Select")
    .Input("step: int64")
    .Input("inputs: N * T")
    .Output("output: T")
    .Attr("N: int >= 1")
    .Attr("T: type")
    .Attr("channel: int >= 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::UnknownShape)
    .Doc(R"doc(
Waits until the PythonRunner says which of several tensors it uses.

step: The step's id, a scalar.
inputs: The alternatives; those that this step has not made are dummies.
output: The chosen one, or a tensor that came with the message.
channel: The channel of the step's mailbox.
)doc");

REGISTER_OP("Terra>CheckIndices")
    .Input("indices: Tindices")
    .Output("output: Tindices")
    .Attr("Tindices: {int32, int64}")
    .Attr("limits: list(int) >= 1")
    .SetIsStateful()
    .SetShapeFn(IndexShape)
    .Doc(R"doc(
Fails with INVALID_ARGUMENT unless every index is inside its limit.

It runs before the commit, so that an in-place write that would fail does not
start at all; the step is then repeated eagerly, where the error is eager's.

indices: With one limit, indices of any shape; with n limits, index vectors
  of length n in the last dimension.
output: The indices, unchanged.
limits: The exclusive upper bounds.
)doc");

}  // namespace
}  // namespace terra
