"""The names that the flags of `python -m benchmarks` know. No TensorFlow in here.

The parent process never imports TensorFlow, so the names stand here, and a test compares them with
`benchmarks.programs.paper` and `benchmarks.modes`.
"""

PROGRAM_NAMES = (
    "dropblock",
    "bert_qa",
    "music_transformer",
    "sdpoint",
    "bert_cls",
    "gpt2",
    "dcgan",
    "resnet50",
    "faster_rcnn",
    "yolov3",
)
MODE_NAMES = ("eager", "tf_function", "tf_function_xla", "terra")
SIZE_NAMES = ("tiny", "small", "paper")
