/** What is measured: language models by shape, with random weights, and a batch in which every token has a loss. */
import { random } from '../src/config/random.ts';
import { allDense } from '../src/ffn/feedForward.ts';
import { type DecoderConfig, parameterShapes } from '../src/llm/config.ts';
import { plainLlama } from '../src/llm/families.ts';
import type { AudioLlm } from '../src/pal/audioLlm.ts';
import type { Stream } from '../src/pal/streams.ts';
import { float32, sizeOf, type Tensor } from '../src/tensor/tensor.ts';

const llama = {
  ...plainLlama,
  tieWordEmbeddings: true,
  maxPositions: 2048,
  bosTokenId: 1,
  eosTokenIds: [2],
  padTokenId: null,
} as const;

export interface BenchShape {
  readonly llm: DecoderConfig;
  readonly batch: number;
  /** Text tokens of a sequence. */
  readonly rows: number;
}

export const benchShapes = {
  tiny: {
    llm: {
      ...llama,
      hiddenSize: 192,
      intermediateSize: 512,
      layers: 8,
      heads: 6,
      keyValueHeads: 2,
      headWidth: 32,
      vocabularySize: 4096,
    },
    batch: 4,
    rows: 128,
  },
  'smollm2-135m': {
    llm: {
      ...llama,
      hiddenSize: 576,
      intermediateSize: 1536,
      layers: 30,
      heads: 9,
      keyValueHeads: 3,
      headWidth: 64,
      vocabularySize: 49_152,
    },
    batch: 4,
    rows: 128,
  },
  /** Many small layers: a program of more than 50,000 nodes. */
  deep: {
    llm: {
      ...llama,
      hiddenSize: 32,
      intermediateSize: 64,
      layers: 400,
      heads: 4,
      keyValueHeads: 2,
      headWidth: 8,
      vocabularySize: 512,
    },
    batch: 2,
    rows: 16,
  },
  /** More weights than protobuf's 2 GiB: 2.3 GB. */
  '600m': {
    llm: {
      ...llama,
      hiddenSize: 1536,
      intermediateSize: 4096,
      layers: 20,
      heads: 24,
      keyValueHeads: 8,
      headWidth: 64,
      vocabularySize: 49_152,
    },
    batch: 1,
    rows: 32,
  },
} as const satisfies Record<string, BenchShape>;

export type BenchShapeName = keyof typeof benchShapes;

/** Llama parameters by Hugging Face's names, normal with deviation 0.02. */
export function randomParameters(llm: DecoderConfig): Map<string, Tensor & { dtype: 'float32' }> {
  const table = normals(65_536);
  return new Map(
    [...parameterShapes(llm)].map(([name, shape], index) => {
      const size = sizeOf(shape);
      const data = new Float32Array(size);
      if (shape.length === 1) data.fill(1);
      else for (let at = 0; at < size; at++) data[at] = 0.02 * (table[(at * 31 + index) & 0xffff] as number);
      return [name, float32(shape, data)];
    }),
  );
}

function normals(size: number): Float32Array {
  const draw = random('bench');
  return Float32Array.from({ length: size }, () => draw.normal());
}

/** The model, without or with streams. */
export function benchModel(llm: DecoderConfig, streams: readonly Stream[] = []): AudioLlm {
  return {
    llm,
    feedForward: allDense,
    streams,
    integration: { positions: 'reserve', attentionOnlyVisibleToPrefix: true },
    slot: 1,
  };
}
