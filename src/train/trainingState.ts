/** Where a stage's parameters and moments live while it trains. */
import { deviceState } from './deviceState.ts';
import { hostState } from './hostState.ts';
import type { OptimizerState, StepOptions, TrainingState } from './step.ts';

/**
 * Compiles the training step and takes over its state.
 * @param start moments to go on with; zero when left out
 * @throws EngineError when the engine does not take the program, or there is no memory
 */
export function trainingState(options: StepOptions, start?: OptimizerState): Promise<TrainingState> {
  return options.engine.inPlace ? hostState(options, start) : deviceState(options, start);
}
