/**
 * Who stands where and who sees whom, layer by layer. The keys of a layer are [attention-only audio; prefix
 * audio; text]; its rows are [prefix audio; text]. Attention does not care for the order of keys, so prefix
 * audio standing in front of the system prompt's rows computes the same as standing behind them: position and
 * visibility are set here.
 */
import { isInWindow, masked } from '../llm/decoder.ts';
import { audioTokens, type IntegrationConfig, layersOf, type Stream } from './streams.ts';

export interface Segment {
  /** The stream, or undefined for the text. */
  readonly stream?: Stream;
  readonly rows: number;
  /** Rotary positions of the rows; undefined: none. */
  readonly positions: readonly number[] | undefined;
}

export interface LayerLayout {
  /** Attention-only streams: keys and values, no rows. */
  readonly external: readonly Segment[];
  /** Prefix streams, then the text. */
  readonly rows: readonly Segment[];
  /** How far the positions of text behind the audio's slot are moved. */
  readonly textOffset: number;
}

export interface LayoutOptions {
  readonly layerCount: number;
  readonly streams: readonly Stream[];
  readonly integration: IntegrationConfig;
  /** Text rows, padding included. */
  readonly textRows: number;
  /** Text rows in front of the audio: the beginning-of-text token and the system prompt. */
  readonly slot: number;
}

/** The layout of every layer. */
export function layoutOf({ layerCount, streams, integration, textRows, slot }: LayoutOptions): LayerLayout[] {
  const placed = streams.map((stream) => ({ stream, layers: new Set(layersOf(stream, layerCount)) }));
  return Array.from({ length: layerCount }, (_, layer) => {
    const external: Segment[] = [];
    const rows: Segment[] = [];
    let position = slot;
    for (const { stream, layers } of placed) {
      const present = layers.has(layer);
      const segment = segmentAt(stream, position);
      if (present || integration.positions === 'reserve') position += reserved(stream);
      if (present) (stream.integration.mode === 'prefix' ? rows : external).push(segment);
    }
    const textOffset = position - slot;
    const positions = Array.from({ length: textRows }, (_, row) => (row < slot ? row : row + textOffset));
    return { external, rows: [...rows, { rows: textRows, positions }], textOffset };
  });
}

function segmentAt(stream: Stream, position: number): Segment {
  const rows = audioTokens(stream);
  const rope = stream.integration.mode === 'prefix' ? 'sequential' : stream.integration.rope;
  const index = [...Array(rows).keys()];
  const positions = {
    sequential: index.map((row) => position + row),
    shared: index.map(() => position),
    none: undefined,
  };
  return { stream, rows, positions: positions[rope] };
}

/** Positions that a stream takes up. */
function reserved(stream: Stream): number {
  const rope = stream.integration.mode === 'prefix' ? 'sequential' : stream.integration.rope;
  return { sequential: audioTokens(stream), shared: 1, none: 0 }[rope];
}

/**
 * The attention bias [rows, keys] of a layer: 0 where a row sees a key, `masked` where not.
 * @param window how many of the newest positions a row sees, its own included; null: all. It is about the sequence:
 * attention-only audio stands outside and stays in sight.
 */
export function biasOf(
  layout: LayerLayout,
  slot: number,
  integration: IntegrationConfig,
  window: number | null = null,
): Float32Array {
  const keys = [...layout.external, ...layout.rows];
  const count = (segments: readonly Segment[]) =>
    segments.reduce((total, segment) => total + segment.rows, 0);
  const bias = new Float32Array(count(layout.rows) * count(keys));
  let at = 0;
  for (const [rowOrder, rowSegment] of layout.rows.entries()) {
    for (let row = 0; row < rowSegment.rows; row++) {
      for (const [keyOrder, keySegment] of keys.entries()) {
        const order = keyOrder - layout.external.length;
        for (let key = 0; key < keySegment.rows; key++) {
          const sees = isVisible(rowSegment, row, rowOrder, keySegment, key, order, slot, integration);
          const reaches =
            order < 0 || isInWindow(positionOf(rowSegment, row), positionOf(keySegment, key), window);
          bias[at++] = sees && reaches ? 0 : masked;
        }
      }
    }
  }
  return bias;
}

/** Rows of the sequence all have one. */
function positionOf({ positions }: Segment, row: number): number {
  return positions?.[row] as number;
}

/** Orders count the segments among the rows; a negative key order marks an attention-only stream. */
function isVisible(
  rowSegment: Segment,
  row: number,
  rowOrder: number,
  keySegment: Segment,
  key: number,
  keyOrder: number,
  slot: number,
  { attentionOnlyVisibleToPrefix }: IntegrationConfig,
): boolean {
  const rowIsText = rowSegment.stream === undefined;
  const integration = keySegment.stream?.integration;
  if (integration === undefined) return rowIsText ? key <= row : key < slot;
  if (integration.mode === 'attention-only') {
    if (!rowIsText) return attentionOnlyVisibleToPrefix;
    return integration.audioVisibleTo === 'all' || row >= slot;
  }
  if (rowIsText) return row >= slot;
  return keyOrder < rowOrder || (keyOrder === rowOrder && key <= row);
}
