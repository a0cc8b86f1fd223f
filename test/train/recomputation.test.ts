import { describe, expect, it } from 'vitest';
import { activationsOf } from '../../src/train/activations.ts';
import { answerObjective } from '../../src/train/loss.ts';
import { chooseRecomputation } from '../../src/train/recomputation.ts';
import { gradientProgram } from '../../src/train/step.ts';
import { allParameters, audioLlm, llm, stream } from '../pal/fixture.ts';

const model = audioLlm([stream('one')]);
const parameters = allParameters(model);
const objective = answerObjective(model, { rows: 16, textRows: 32, targets: 32 });
const whole = { objective, trainable: parameters, frozen: new Map() };
const program = gradientProgram(whole);
const peakOf = (layers: readonly number[]) =>
  activationsOf(gradientProgram({ ...whole, recompute: layers })).peakBytes;

describe('the layers that are computed again', () => {
  it('by layer: all, some, neighbours', () => {
    const choose = (config: Parameters<typeof chooseRecomputation>[0]) =>
      chooseRecomputation(config, program, llm.layers);
    expect(choose({ kind: 'all' }).layers).toEqual([0, 1, 2, 3]);
    expect(choose({ kind: 'list', layers: [3, 1] }).layers).toEqual([1, 3]);
    const { layers, reason } = choose({ kind: 'interval', from: 0, to: 2 });
    expect(layers).toEqual([0, 1, 2]);
    expect(reason).toBe(
      `computed again in the backward pass: layers 0 to 2 (activations take ${(peakOf(layers) / 1e6).toFixed(2)} MB ` +
        `instead of ${(peakOf([]) / 1e6).toFixed(2)} MB)`,
    );
    expect(() => choose({ kind: 'list', layers: [4] })).toThrow(
      'train.recompute asks for layer 4; the LLM has layers 0 to 3',
    );
  });

  it('layers below all that is trained have nothing to compute again, and it says so', () => {
    const own = (wanted: boolean) =>
      new Map([...parameters].filter(([name]) => name.startsWith('connector.') === wanted));
    const frozen = gradientProgram({ objective, trainable: own(true), frozen: own(false) });
    const { layers, reason } = chooseRecomputation({ kind: 'all' }, frozen, llm.layers);
    expect(layers).toEqual([2, 3]);
    expect(reason).toContain('no backward pass reads layers 0 to 1');
  });

  it('by budget: as few as keep it', () => {
    const peaks = [[], [2], [2, 3], [0, 2, 3], [0, 1, 2, 3]].map(peakOf);
    for (const [count, peak] of peaks.entries()) {
      const chosen = chooseRecomputation({ kind: 'budget', activationMB: peak / 1e6 }, program, llm.layers);
      expect(chosen.layers.length).toBeLessThanOrEqual(count);
      expect(peakOf(chosen.layers)).toBeLessThanOrEqual(peak);
      expect(chosen.reason).toContain(`within train.recompute.activationMB: ${peak / 1e6}`);
    }
    const tight = chooseRecomputation(
      { kind: 'budget', activationMB: ((peaks[1] as number) - 1) / 1e6 },
      program,
      llm.layers,
    );
    expect(tight.layers.length).toBeGreaterThan(1);
  });

  it('a budget that cannot be kept is an error with the figures', () => {
    const [asIs, least] = [peakOf([]), peakOf([0, 1, 2, 3])].map((bytes) => (bytes / 1e6).toFixed(2));
    expect(() => chooseRecomputation({ kind: 'budget', activationMB: 0.5 }, program, llm.layers)).toThrow(
      new RegExp(
        `^train.recompute.activationMB: 0.5: activations take ${asIs} MB, and with all 4 layers .* still ${least} MB, at ".*": layers`,
      ),
    );
  });
});
