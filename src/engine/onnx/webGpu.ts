/**
 * Primitives in operators that ONNX Runtime's WebGPU provider has. What it has not runs on the CPU, silently, with
 * a copy of every operand from the GPU and of the result back.
 */
import type { Shape } from '../../tensor/tensor.ts';
import { type Lower, type Lowerings, transposed } from './lowering.ts';

/** There is no FusedMatMul. */
const matmul: Lower<'matmul'> = ({ graph, node, attributes, inputs, outputs }) => {
  const { transposeA, transposeB, scale } = attributes;
  const [a = '', b = ''] = inputs;
  const [shapeA, shapeB] = node.inputs.map(({ shape }) => shape) as [Shape, Shape];
  const value = node.outputs[0];
  if (!transposeA && !transposeB && scale === 1) return graph.node('MatMul', inputs, outputs);
  const flat = shapeB.length === 2 && (shapeA.length === 2 || !transposeA);
  if (flat && (value?.dtype === 'float32' || value?.dtype === 'float16')) {
    // Gemm transposes while it reads; reshaping is free.
    const gemm = { transA: Number(transposeA), transB: Number(transposeB), alpha: { float: scale } };
    if (shapeA.length === 2) return graph.node('Gemm', inputs, outputs, gemm);
    const rows = graph.temporary(`${outputs[0]}.rows`);
    const product = graph.temporary(`${outputs[0]}.product`);
    graph.node('Reshape', [a, graph.integers([-1, shapeA.at(-1) as number])], [rows]);
    graph.node('Gemm', [rows, b], [product], gemm);
    return graph.node('Reshape', [product, graph.integers(value.shape)], outputs);
  }
  const factors = [
    transposeA ? transposed(graph, a, shapeA.length, outputs) : a,
    transposeB ? transposed(graph, b, shapeB.length, outputs) : b,
  ];
  if (scale === 1 || value === undefined) return graph.node('MatMul', factors, outputs);
  const product = graph.temporary(`${outputs[0]}.unscaled`);
  graph.node('MatMul', factors, [product]);
  graph.node('Mul', [product, graph.scalar(value.dtype, scale)], outputs);
};

/** There is no LogSoftmax. x - max - log(sum(exp(x - max))): no exponential overflows. */
const logSoftmax: Lower<'logSoftmax'> = ({ graph, inputs, outputs }) => {
  const temporary = (what: string) => graph.temporary(`${outputs[0]}.${what}`);
  const [largest, shifted, powers, sum, logarithm] = [
    temporary('largest'),
    temporary('shifted'),
    temporary('powers'),
    temporary('sum'),
    temporary('logarithm'),
  ];
  const last = graph.integers([-1]);
  graph.node('ReduceMax', [...inputs, last], [largest], { keepdims: 1 });
  graph.node('Sub', [...inputs, largest], [shifted]);
  graph.node('Exp', [shifted], [powers]);
  graph.node('ReduceSum', [powers, last], [sum], { keepdims: 1 });
  graph.node('Log', [sum], [logarithm]);
  graph.node('Sub', [shifted, logarithm], outputs);
};

export const webGpuLowerings = { matmul, logSoftmax } satisfies Partial<Lowerings>;
