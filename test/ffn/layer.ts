/** A single sparse layer as a program: its output, its losses and all of its gradients. */
import { type Engine, plain } from '../../src/engine/engine.ts';
import { type FeedForwardConfig, type FeedForwardLayer, feedForwardLayers } from '../../src/ffn/config.ts';
import type { FeedForward } from '../../src/ffn/feedForward.ts';
import { hashTableShapes } from '../../src/ffn/hashTable.ts';
import { feedForwardOf } from '../../src/ffn/layers.ts';
import { feedForwardParameters } from '../../src/ffn/parameters.ts';
import { gradients } from '../../src/tensor/gradients.ts';
import { add, multiply, sum } from '../../src/tensor/operations.ts';
import { parameterInputs } from '../../src/tensor/parameters.ts';
import type { Program, Value } from '../../src/tensor/program.ts';
import { float32, int32, type Tensor } from '../../src/tensor/tensor.ts';
import { trace } from '../../src/tensor/trace.ts';
import { fill } from '../llm/formula.ts';

type FloatTensor = Tensor & { dtype: 'float32' };

export const sizes = { layers: 1, hiddenSize: 6, intermediateSize: 16, vocabularySize: 3 };

/** The layer of a configuration, for the small sizes of the tests. */
export function layerOf(config: FeedForwardConfig): FeedForwardLayer {
  return feedForwardLayers(config, sizes)[0] as FeedForwardLayer;
}

/** Parameters by the formula of the golden files. */
export function layerParameters(
  layer: FeedForwardLayer,
  { bias = false }: { readonly bias?: boolean } = {},
): Map<string, FloatTensor> {
  const { hiddenSize: width, intermediateSize: cells } = sizes;
  const shapes = new Map<string, readonly number[]>([
    ['model.layers.0.mlp.gate_proj.weight', [cells, width]],
    ['model.layers.0.mlp.up_proj.weight', [cells, width]],
    ['model.layers.0.mlp.down_proj.weight', [width, cells]],
  ]);
  if (bias) {
    shapes.set('model.layers.0.mlp.gate_proj.bias', [cells]);
    shapes.set('model.layers.0.mlp.up_proj.bias', [cells]);
    shapes.set('model.layers.0.mlp.down_proj.bias', [width]);
  }
  const biases = { feedForward: bias };
  for (const [name, { shape }] of feedForwardParameters([layer], { hiddenSize: width, biases }))
    shapes.set(name, shape);
  return new Map([...shapes].map(([name, shape]) => [name, fill(name, shape)]));
}

export interface LayerCase {
  readonly layer: FeedForwardLayer;
  readonly parameters: ReadonlyMap<string, FloatTensor>;
  readonly x: FloatTensor;
  /** What the sum of the output is weighted with, whose gradients are asked for. */
  readonly targets: FloatTensor;
  readonly tokens?: readonly number[] | undefined;
  readonly valid?: readonly number[] | undefined;
  /** Rows of the hash table. */
  readonly table?: readonly (readonly number[])[] | undefined;
}

/** Outputs `output`, `auxiliaryLoss` where there is one, `statistic.<name>`, `gradient.<name>`; and what to feed. */
export function layerProgram(given: LayerCase): { program: Program; feeds: Record<string, Tensor> } {
  const { layer, parameters, x, targets, tokens, valid, table } = given;
  const rows = x.shape[0] as number;
  const tables = new Map(
    [...hashTableShapes([layer], sizes.vocabularySize)].map(([name]) => {
      const flat = (table as readonly (readonly number[])[]).flat();
      return [
        name,
        float32([(table as readonly unknown[]).length, flat.length / (table?.length ?? 1)], flat),
      ];
    }),
  );
  const feeds: Record<string, Tensor> = {
    x,
    targets,
    ...Object.fromEntries(parameters),
    ...Object.fromEntries(tables),
    ...(tokens && { tokens: int32([rows], tokens) }),
    ...(valid && { valid: float32([rows], valid) }),
  };
  const types = parameterInputs(new Map(Object.entries(feeds)));
  const program = trace<string>(types, (inputs) => {
    const made = (feedForwardOf([layer])(0) as FeedForward)(
      inputs.x as Value,
      new Map(Object.entries(inputs)),
      {
        layer: 0,
        prefix: 'model.layers.0.mlp',
        rows: () => ({ tokensBT: inputs.tokens as Value, validBT: inputs.valid }),
      },
    );
    // The sum of a constant product: what flows back is known.
    const weighted = sum(multiply(made.y, inputs.targets as Value));
    const loss = made.auxiliaryLoss === undefined ? weighted : add(weighted, made.auxiliaryLoss);
    const wanted = ['x', ...parameters.keys()];
    const parts = gradients(
      loss,
      wanted.map((name) => inputs[name] as Value),
    );
    return {
      output: made.y,
      ...(made.auxiliaryLoss && { auxiliaryLoss: made.auxiliaryLoss }),
      ...Object.fromEntries(
        Object.entries(made.statistics ?? {}).map(([name, value]) => [`statistic.${name}`, value]),
      ),
      ...Object.fromEntries(wanted.map((name, at) => [`gradient.${name}`, parts[at] as Value])),
    };
  });
  return { program, feeds };
}

/** The outputs of one run of a program. */
export async function runOn(
  engine: Engine,
  program: Program,
  feeds: Record<string, Tensor>,
): Promise<Record<string, Float32Array>> {
  const executable = await engine.compile(program);
  const outputs = await executable.run(feeds);
  const read = Object.fromEntries(
    [...program.outputs.keys()].map((name) => [name, plain(outputs, name).data as Float32Array]),
  );
  await executable.dispose();
  return read;
}
