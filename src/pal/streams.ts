/** Streams: how the audio of one encoder reaches the LLM. */

import { ConfigError } from '../config/configError.ts';

export type ConnectorConfig =
  | {
      readonly kind: 'mlp';
      /** Width of the hidden layer. */
      readonly hidden: number;
      readonly perLayer: boolean;
    }
  | {
      readonly kind: 'latent';
      /** Learned latents, and so audio tokens given to the LLM. */
      readonly tokens: number;
      readonly heads: number;
      /** Cross-attention blocks. */
      readonly blocks: number;
      readonly perLayer: boolean;
    };

/** Where audio enters: from a layer (0-based) up, or exactly in the listed layers. */
export interface Placement {
  readonly startLayer?: number | undefined;
  readonly layers?: readonly number[] | undefined;
}

export interface PrefixIntegration extends Placement {
  /** Audio rows stand in front of the text and pass through attention and feed-forward (PLITS). */
  readonly mode: 'prefix';
}

export interface AttentionOnlyIntegration extends Placement {
  /** Audio gives keys and values to the text rows and never passes a feed-forward layer (LAL). */
  readonly mode: 'attention-only';
  /** Normalisation of audio before the key and value projections. */
  readonly audioNorm: 'layer' | 'own' | 'none';
  /** Whether the text before the audio's slot sees it too. */
  readonly audioVisibleTo: 'all' | 'afterAudio';
  /** Positions of the audio keys: one after the other, all at the slot's start, or none. */
  readonly rope: 'sequential' | 'shared' | 'none';
  /** The LLM's own key and value projections, or separate ones that start as copies. */
  readonly keyValueProjection: 'llm' | 'separate';
}

export interface StreamConfig {
  readonly name: string;
  readonly encoder: string;
  readonly connector: ConnectorConfig;
  readonly integration: PrefixIntegration | AttentionOnlyIntegration;
}

export interface IntegrationConfig {
  /** Text keeps room for the audio's positions in every layer, or only where audio is present. */
  readonly positions: 'reserve' | 'compact';
  /** Whether prefix rows attend to the keys of attention-only streams. */
  readonly attentionOnlyVisibleToPrefix: boolean;
}

/** A stream with what its encoder delivers. */
export interface Stream extends StreamConfig {
  /** Encoder frames per clip. */
  readonly frames: number;
  /** Width of a frame. */
  readonly width: number;
}

/** Audio tokens that the connector makes of a clip. */
export function audioTokens({ connector, frames }: Stream): number {
  return connector.kind === 'latent' ? connector.tokens : frames;
}

/**
 * The layers in which a stream is present, rising.
 * @throws ConfigError naming the stream and a layer that the LLM does not have
 */
export function layersOf({ name, integration }: StreamConfig, layerCount: number): number[] {
  const { startLayer = 0, layers } = integration;
  const chosen = layers ?? Array.from({ length: layerCount - startLayer }, (_, index) => startLayer + index);
  const outside = [...chosen, startLayer].find((layer) => layer < 0 || layer >= layerCount);
  if (outside !== undefined) {
    throw new ConfigError(
      `stream "${name}" asks for layer ${outside}; the LLM has layers 0 to ${layerCount - 1}`,
    );
  }
  return [...new Set(chosen)].sort((a, b) => a - b);
}
