/** Where a stage's parameters and moments live while it trains. */
import type { Program } from '../tensor/program.ts';
import { deviceState, fusedProgram } from './deviceState.ts';
import { hostState } from './hostState.ts';
import { gradientProgram, type OptimizerState, type StepOptions, type TrainingState } from './step.ts';

/**
 * Compiles the training step and takes over its state.
 * @param start moments to go on with; zero when left out
 * @throws EngineError when the engine does not take the program, or there is no memory
 */
export function trainingState(options: StepOptions, start?: OptimizerState): Promise<TrainingState> {
  return options.engine.inPlace ? hostState(options, start) : deviceState(options, start);
}

/**
 * The program that a step runs for every micro-batch.
 * @param inPlace as the engine's
 */
export function stepProgram(options: Omit<StepOptions, 'engine'>, inPlace: boolean): Program {
  const accumulates = options.accumulate > 1;
  return inPlace || accumulates ? gradientProgram(options, { accumulates }) : fusedProgram(options);
}
