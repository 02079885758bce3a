"""Our own model.pt in the forms that the peers run."""
import tempfile
from pathlib import Path

import numpy
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMES, BANDS = 187, 96


def torchscript(name: str) -> torch.jit.ScriptModule:
    file = max((ROOT / "models/repository" / name).glob("*/model.pt"))
    return torch.jit.freeze(torch.jit.load(file).eval())


class Graph(torch.nn.Module):
    """The nodes of a traced model one by one, as its ONNX exporter knows no shapes in a model that was loaded."""

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.graph = script.inlined_graph

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        values = {list(self.graph.inputs())[-1].debugName(): windows}
        for node in self.graph.nodes():
            arguments = [values[value.debugName()] for value in node.inputs() if value.debugName() in values]
            kind = node.kind()
            if kind == "prim::Constant":
                value = node.output().toIValue()
            elif kind == "prim::ListConstruct":
                value = arguments
            elif kind.startswith("aten::"):
                if kind == "aten::_convolution":  # one stride stands for both; the exporter does not know
                    arguments = [one * 2 if isinstance(one, list) and len(one) == 1 else one for one in arguments]
                declared = torch._C.parse_schema(node.schema()).arguments
                named = {one.name: value for one, value in zip(declared, arguments) if one.kwarg_only}
                value = getattr(torch.ops.aten, kind.removeprefix("aten::"))(*arguments[: len(arguments) - len(named)], **named)
            else:
                raise ValueError(f"the model has a node {kind}")
            values[node.output().debugName()] = value
        return values[next(self.graph.outputs()).debugName()]


def pytorch(name: str, precision: str):
    """A function from one window `[frames × bands]` to its scores, on one thread."""
    torch.set_num_threads(1)
    model = torchscript(name)

    def forward(window: numpy.ndarray) -> numpy.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(torch.from_numpy(window)[None]).float().numpy()

    return forward


def openvino(name: str, precision: str):
    """The same, compiled by OpenVINO."""
    import openvino as ov

    model = ov.convert_model(torch.jit.load(max((ROOT / "models/repository" / name).glob("*/model.pt"))).eval(),
                             example_input=torch.zeros(1, FRAMES, BANDS))
    model.reshape([1, FRAMES, BANDS])
    options = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
    }
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda window: request.infer([window[None]], share_inputs=True)[0]


def onnxruntime(name: str, precision: str):
    """The same, exported to ONNX and run by ONNX Runtime, which has no bfloat16 on the CPU."""
    import onnxruntime as ort

    if precision != "float32":
        raise ValueError(f"ONNX Runtime is run in float32, not in {precision}")
    graph = Graph(torch.jit.load(max((ROOT / "models/repository" / name).glob("*/model.pt"))).eval())
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = f"{folder}/model.onnx"
        torch.onnx.export(graph, (torch.zeros(1, FRAMES, BANDS),), file, dynamo=False, opset_version=18)
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()[0].name
    return lambda window: session.run(None, {inputs: window[None]})[0]


FORWARD = {"pytorch": pytorch, "openvino": openvino, "onnxruntime": onnxruntime}
